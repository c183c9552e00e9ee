"""What was asked of the API, by key and by the hour: kept in the catalogue for 90 days.

`record` is called at the end of every request, on the loop that serves them all: it only puts the request
into memory. A thread of its own writes what came, twice a second.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from core.api.records import HourStats
from core.catalogue_schema import api_requests as _requests
from core.errors import WorkbenchError
from core.store import Store

KEPT_DAYS = 90
_WRITE_EVERY_S = 0.5
_COUNT_ANEW_S = 30.0
_PRUNE_EVERY_S = 6 * 3600.0
_MOST_UNWRITTEN = 100_000  # while the disk is full: about 50 MB
_LONGEST_TEXT = 200
_HOUR = dt.timedelta(hours=1)
_SETTLED = dt.timedelta(minutes=1)  # after which nobody writes requests of an hour that is over
_QUANTILES = {"p50": 0.5, "p95": 0.95}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A request that ended. `status` is that of HTTP, 499 where the client went away before the answer's end.
    `ttft_s`: to the first token; None where none came or nobody measured it. `at` is its end, UTC.
    """

    at: dt.datetime
    key_id: str | None
    endpoint: str
    model: str
    status: int
    duration_s: float
    ttft_s: float | None
    prompt_tokens: int
    output_tokens: int


class Usage:
    """Requests of the API in `store`. Every method from any thread; only `record` never touches the disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._unwritten: deque[RequestRecord] = deque(maxlen=_MOST_UNWRITTEN)
        self._writing = threading.Lock()  # one batch at a time, so that none is written twice
        self._closing = threading.Event()
        self._writer: threading.Thread | None = None
        self._today: dt.date | None = None
        self._tokens: Counter[str] = Counter()
        self._counted_at = 0.0
        self._pruned_at = -math.inf
        self._past: dict[dt.datetime, HourStats] = {}

    def record(
        self,
        *,
        endpoint: str,
        status: int,
        duration_s: float,
        key_id: str | None = None,
        model: str = "",
        ttft_s: float | None = None,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        at: dt.datetime | None = None,
    ) -> None:
        """Keep one request that was answered, refused or broken off; the fields are RequestRecord's."""
        record = RequestRecord(
            at=at or dt.datetime.now(dt.UTC),
            key_id=key_id,
            endpoint=endpoint[:_LONGEST_TEXT],
            model=model[:_LONGEST_TEXT],
            status=status,
            duration_s=duration_s,
            ttft_s=ttft_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
        with self._lock:
            self._unwritten.append(record)
            if key_id is not None and record.at.date() == self._today:
                self._tokens[key_id] += prompt_tokens + output_tokens
            if self._writer is None and not self._closing.is_set():
                self._writer = threading.Thread(target=self._write_on, name="api-usage", daemon=True)
                self._writer.start()

    def tokens_today(self, key_id: str) -> int:
        """Prompt and output tokens of a key since midnight UTC. Those of other processes on this workspace
        are in it half a minute later at most. Reads the catalogue once a day; else from memory.
        """
        if self._today != dt.datetime.now(dt.UTC).date():
            self._count_anew()
        return self._tokens[key_id]

    def hours(self, since: dt.datetime, *, key_id: str | None = None) -> tuple[HourStats, ...]:
        """Each hour since the one that `since` lies in, oldest first; hours without a request are there, too.

        Percentiles are numpy's (linear between neighbours), of all requests of the hour that were answered.
        An hour that is over is read once: requests are counted when they end.
        """
        hour = since.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
        known: list[HourStats] = []
        while key_id is None and (past := self._past.get(hour)) is not None:
            known.append(past)
            hour += _HOUR
        found = self._hours_from(hour, key_id)
        if key_id is None:
            settled = dt.datetime.now(dt.UTC) - _HOUR - _SETTLED
            with self._lock:
                self._past |= {one.hour: one for one in found if one.hour < settled}
        return (*known, *found)

    def _hours_from(self, hour: dt.datetime, key_id: str | None) -> tuple[HourStats, ...]:
        counts = {row["hour"]: row for row in self._store.all(self._counts(hour, key_id))}
        whole = self._percentiles("duration_s", hour, key_id)
        first_token = self._percentiles("ttft_s", hour, key_id)
        found = []
        now = dt.datetime.now(dt.UTC)
        while hour <= now:
            name = f"{hour:%Y-%m-%d %H}"
            row = counts.get(name, {})
            found.append(
                HourStats(
                    hour=hour,
                    requests=row.get("requests", 0),
                    errors=row.get("errors", 0),
                    prompt_tokens=row.get("prompt_tokens", 0),
                    output_tokens=row.get("output_tokens", 0),
                    p50_s=whole.get((name, "p50")),
                    p95_s=whole.get((name, "p95")),
                    p50_ttft_s=first_token.get((name, "p50")),
                    p95_ttft_s=first_token.get((name, "p95")),
                )
            )
            hour += _HOUR
        return tuple(found)

    def statuses(self, since: dt.datetime) -> dict[int, int]:
        """How many requests ended with which HTTP status, the lowest status first."""
        count = sa.func.count().label("count")
        query = sa.select(_requests.c.status, count).where(_requests.c.at >= since)
        rows = self._store.all(query.group_by(_requests.c.status).order_by(_requests.c.status))
        return {row["status"]: row["count"] for row in rows}

    def latest(self, limit: int = 50) -> tuple[RequestRecord, ...]:
        """The requests that ended last, newest first."""
        query = sa.select(*(_requests.c[field.name] for field in fields(RequestRecord)))
        rows = self._store.all(query.order_by(_requests.c.number.desc()).limit(limit))
        return tuple(RequestRecord(**row) for row in rows)

    def flush(self) -> None:
        """Write what came until now. Raises WorkbenchError on a full disk; nothing is lost by that."""
        with self._writing:
            with self._lock:
                records = list(self._unwritten)
            if not records:
                return
            values = [{field.name: getattr(one, field.name) for field in fields(one)} for one in records]
            with self._store.transaction() as connection:
                connection.execute(sa.insert(_requests), values)
            with self._lock:
                written = {id(one) for one in records}
                while self._unwritten and id(self._unwritten[0]) in written:
                    self._unwritten.popleft()

    def close(self) -> None:
        """Write what is left. Safe to call twice."""
        self._closing.set()
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join()
        self._try(self.flush)

    # -- the writer's thread --------------------------------------------------

    def _write_on(self) -> None:
        while not self._closing.wait(_WRITE_EVERY_S):
            self._try(self.flush)
            if time.monotonic() - self._counted_at > _COUNT_ANEW_S:
                self._try(self._count_anew)
            if time.monotonic() - self._pruned_at > _PRUNE_EVERY_S:
                self._try(self._prune)

    def _try(self, action: Any) -> None:
        """A full disk must not end the thread: what could not be written is tried again."""
        try:
            action()
        except WorkbenchError as error:
            _log.warning("The API's usage was not kept: %s", error)

    def _prune(self) -> None:
        oldest = dt.datetime.now(dt.UTC) - dt.timedelta(days=KEPT_DAYS)
        self._store.execute(sa.delete(_requests).where(_requests.c.at < oldest))
        self._pruned_at = time.monotonic()

    def _count_anew(self) -> None:
        """The tokens of the day from the catalogue, and those that are not written yet."""
        now = dt.datetime.now(dt.UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        spent = sa.func.sum(_requests.c.prompt_tokens + _requests.c.output_tokens).label("tokens")
        query = sa.select(_requests.c.key_id, spent).where(
            _requests.c.at >= midnight, _requests.c.key_id.is_not(None)
        )
        with self._writing:  # a record is either in the catalogue or unwritten, never between
            tokens = Counter(
                {row["key_id"]: row["tokens"] for row in self._store.all(query.group_by(_requests.c.key_id))}
            )
            with self._lock:
                for record in self._unwritten:
                    if record.key_id is not None and record.at >= midnight:
                        tokens[record.key_id] += record.prompt_tokens + record.output_tokens
                self._today, self._tokens, self._counted_at = now.date(), tokens, time.monotonic()

    # -- queries --------------------------------------------------------------

    @staticmethod
    def _since(first: dt.datetime, key_id: str | None) -> list[sa.ColumnElement[bool]]:
        wanted = [_requests.c.at >= first]
        return wanted if key_id is None else [*wanted, _requests.c.key_id == key_id]

    def _counts(self, first: dt.datetime, key_id: str | None) -> sa.Select[Any]:
        hour = _hour()
        return (
            sa.select(
                hour.label("hour"),
                sa.func.count().label("requests"),
                sa.func.sum(sa.cast(_requests.c.status >= 400, sa.Integer)).label("errors"),
                sa.func.sum(_requests.c.prompt_tokens).label("prompt_tokens"),
                sa.func.sum(_requests.c.output_tokens).label("output_tokens"),
            )
            .where(*self._since(first, key_id))
            .group_by(hour)
        )

    def _percentiles(self, name: str, first: dt.datetime, key_id: str | None) -> dict[tuple[str, str], float]:
        """{(hour, "p50"): seconds}. The database ranks them: a busy hour is not carried over here."""
        hour, column = _hour(), _requests.c[name]
        ranked = (
            sa.select(
                hour.label("hour"),
                column.label("value"),
                (sa.func.row_number().over(partition_by=hour, order_by=column) - 1).label("place"),
                sa.func.count().over(partition_by=hour).label("count"),
            )
            .where(*self._since(first, key_id), _requests.c.status < 400, column.is_not(None))
            .subquery()
        )
        near = [
            sa.func.abs(ranked.c.place - (ranked.c.count - 1) * quantile) < 1
            for quantile in _QUANTILES.values()
        ]
        values: dict[tuple[str, int], float] = {}
        counts: dict[str, int] = {}
        for row in self._store.all(sa.select(ranked).where(sa.or_(*near))):
            values[row["hour"], row["place"]] = row["value"]
            counts[row["hour"]] = row["count"]
        found = {}
        for at, count in counts.items():
            for named, quantile in _QUANTILES.items():
                place = (count - 1) * quantile
                low, high = values[at, math.floor(place)], values[at, math.ceil(place)]
                found[at, named] = low + (high - low) * (place - math.floor(place))
        return found


def _hour() -> sa.Function[str]:
    return sa.func.strftime("%Y-%m-%d %H", _requests.c.at)
