"""The nouns of the API that cross a module's border."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

ApiPhase = Literal["stopped", "starting", "serving", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What a key may use; None: no limit. `priority` orders waiting requests among API requests: 0 to 9,
    lower first; all of them come after chats and before batches.
    """

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    priority: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is kept: its secret only as a hash. `start` is its first characters, to know it by."""

    key_id: str
    name: str
    start: str
    created_at: dt.datetime
    limits: KeyLimits
    revoked_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiStatus:
    """The server now. `url` has no path ("http://127.0.0.1:8000", https with a certificate).

    `needs_key`: it is not bound to loopback, or keys are asked for anyway. `error`: why it could not start.
    """

    phase: ApiPhase
    host: str
    port: int
    url: str | None = None
    needs_key: bool = False
    models: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_encrypted(self) -> bool:
        return self.url is not None and self.url.startswith("https:")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRequest:
    """A request that the API works on. `state`: "waiting" before its first token."""

    request_id: str
    key_name: str
    endpoint: str
    model: str
    state: Literal["waiting", "generating"]
    prompt_tokens: int
    output_tokens: int
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HourStats:
    """An hour of the API, UTC. Latencies are of requests that were answered, None where there were none;
    `errors` are all others: refused, failed, or broken off by their client.
    """

    hour: dt.datetime
    requests: int
    errors: int
    prompt_tokens: int
    output_tokens: int
    p50_s: float | None
    p95_s: float | None
    p50_ttft_s: float | None = None
    p95_ttft_s: float | None = None
