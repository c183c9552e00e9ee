"""Who may ask now: requests a minute and tokens a day of each key, and requests at once of all."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

from core.api.openai_errors import HttpError
from core.api.records import ApiKey

_MINUTE_S = 60.0


class Limits:
    """`spent` gives the tokens that a key has used today. Belongs to one event loop."""

    def __init__(
        self, spent: Callable[[str], int], *, at_once: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._spent = spent
        self._at_once = at_once
        self._now = now
        self._asked: defaultdict[str, deque[float]] = defaultdict(deque)

    def admit(self, key: ApiKey | None, at_work: int) -> None:
        """Count one request, of which `at_work` are being answered already.

        Raises HttpError 429 with Retry-After; what is refused counts for nothing.
        """
        if at_work >= self._at_once:
            raise HttpError(
                429,
                f"{at_work} requests are being answered, which is the most at once. Ask again in a moment.",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )
        if key is not None:
            self._check_tokens(key)
            self._count(key)

    def _count(self, key: ApiKey) -> None:
        most = key.limits.requests_per_minute
        if most is None:
            self._asked.pop(key.key_id, None)
            return
        now, asked = self._now(), self._asked[key.key_id]
        while asked and asked[0] <= now - _MINUTE_S:
            asked.popleft()
        if len(asked) >= most:
            wait_s = math.ceil(asked[len(asked) - most] + _MINUTE_S - now)
            raise HttpError(
                429,
                f"The key {key.name!r} may ask {most} times a minute. Ask again in {wait_s} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait_s)},
            )
        asked.append(now)

    def _check_tokens(self, key: ApiKey) -> None:
        most = key.limits.tokens_per_day
        if most is None or self._spent(key.key_id) < most:
            return
        now = dt.datetime.now(dt.UTC)
        midnight = (now + dt.timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        raise HttpError(
            429,
            f"The key {key.name!r} has used its {most:,} tokens of today. It has new ones at midnight UTC.",
            type="insufficient_quota",
            code="insufficient_quota",
            headers={"Retry-After": str(math.ceil((midnight - now).total_seconds()))},
        )
