"""What the catalogue keeps of batches. Each change is one transaction: other processes change them, too."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import sqlalchemy as sa

from core.api.incoming import Page
from core.api.openai_errors import HttpError
from core.catalogue_schema import api_batches as _batches
from core.catalogue_schema import runs as _runs
from core.store import Store, is_alive, this_process

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired"
]
ENDED: tuple[BatchStatus, ...] = ("completed", "failed", "cancelled", "expired")
WINDOW = "24h"
_WINDOW_S = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """What is wrong with a line of the input, or with the batch (`line` None)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """Requests of a batch; those that failed or asked nothing are `failed`."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`times`: seconds since 1970 by OpenAI's names ("in_progress_at"). `model` answers all of it.

    `bad_lines` of the input can't be asked; `errors` names the first of them. The owner is the process
    that works on it, as `core.store.this_process` describes it. `is_over`: its time ended before its work.
    """

    batch_id: str
    created_at: dt.datetime
    key_id: str | None
    run_id: str | None = None
    status: BatchStatus = "validating"
    endpoint: str
    input_file_id: str
    filename: str
    completion_window: str
    metadata: Mapping[str, str] | None = None
    model: str | None = None
    times: Mapping[str, int] = field(default_factory=dict)
    errors: tuple[LineError, ...] = ()
    bad_lines: int = 0
    is_over: bool = False
    counts: BatchCounts = BatchCounts()
    output_file_id: str | None = None
    error_file_id: str | None = None
    owner_pid: int | None = None
    owner_started: float | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def is_late(self) -> bool:
        """Whether its time has ended. Batches of before there was an end have none."""
        return "expires_at" in self.times and time.time() >= self.times["expires_at"]

    def as_json(self, counts: BatchCounts | None = None) -> dict[str, Any]:
        """As OpenAI has it. `counts`: how far it is now, where its end has not been written down."""
        times = ("in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired")
        errors = {"object": "list", "data": [asdict(error) for error in self.errors]}
        return {
            "id": self.batch_id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": errors if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created_at.timestamp()),
            **{f"{name}_at": self.times.get(f"{name}_at") for name in times},
            "expires_at": self.times.get("expires_at"),
            "request_counts": asdict(counts or self.counts),
            "metadata": self.metadata,
        }


_COLUMNS = ("batch_id", "created_at", "key_id", "run_id")
_BODY = tuple(one.name for one in fields(Batch) if one.name not in _COLUMNS)


class BatchRecords:
    """All batches of one workspace. Every method blocks: call it in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, **values: Any) -> Batch:
        """A new batch, validating, that this process works on; `values` are Batch's fields."""
        now = dt.datetime.now(dt.UTC)
        batch = Batch(
            batch_id=f"batch_{secrets.token_hex(12)}",
            created_at=now,
            times={"expires_at": int(now.timestamp()) + _WINDOW_S},
            **values,
            **this_process(),
        )
        row = {name: getattr(batch, name) for name in _COLUMNS}
        self._store.execute(sa.insert(_batches).values(**row, body=_body(batch)))
        return batch

    def find(self, batch_id: str) -> Batch | None:
        row = self._store.first(sa.select(_batches).where(_batches.c.batch_id == batch_id))
        return _batch(row) if row else None

    def own(self, batch_id: str, key_id: str | None) -> Batch:
        """Raises HttpError 404, also for a batch of another key."""
        batch = self.find(batch_id)
        if batch is None or batch.key_id != key_id:
            raise HttpError(404, f"There is no batch {batch_id[:80]!r}.", code="batch_not_found", param="id")
        return batch

    def list(self, key_id: str | None, page: Page) -> tuple[list[Batch], bool]:
        """The batches of a page, and whether more follow."""
        own = _batches.c.key_id.is_(None) if key_id is None else _batches.c.key_id == key_id
        after = self.own(page.after, key_id) if page.after else None
        place = (after.created_at, after.batch_id) if after else None
        query = page.of(sa.select(_batches).where(own), _batches.c.created_at, _batches.c.batch_id, place)
        rows = self._store.all(query)
        return [_batch(row) for row in rows[: page.limit]], len(rows) > page.limit

    def open(self) -> list[Batch]:
        """Those that have not ended, of all keys, the oldest first."""
        status = _batches.c.body.cast(sa.Text).op("->>")("$.status")
        query = sa.select(_batches).where(status.not_in(ENDED)).order_by(_batches.c.created_at)
        return [_batch(row) for row in self._store.all(query)]

    def tokens_since(self, at: dt.datetime, key_id: str) -> int:
        """Prompt and output tokens, so far, of the key's batches that were made since `at`."""
        spent = sa.func.sum(_runs.c.prompt_tokens + _runs.c.output_tokens).label("tokens")
        query = sa.select(spent).where(
            _batches.c.run_id == _runs.c.run_id, _batches.c.key_id == key_id, _batches.c.created_at >= at
        )
        return self._store.first(query)["tokens"] or 0

    def change(self, batch_id: str, *, only_in: Sequence[BatchStatus] = (), **values: Any) -> Batch:
        """Set fields, and note the time where `status` changes; in another status than `only_in`, nothing.

        Gives the batch as it is then. Raises HttpError 404 when it is gone.
        """
        return self._changed(
            batch_id,
            lambda batch: replace(batch, **values) if not only_in or batch.status in only_in else batch,
        )

    def claim(self, batch_id: str) -> Batch | None:
        """Make this process the one that works on it; None while another does, or when it has ended."""
        here = this_process()
        batch = self._changed(
            batch_id,
            lambda batch: batch if batch.has_ended or _is_elsewhere(batch) else replace(batch, **here),
        )
        return batch if not batch.has_ended and batch.owner_pid == here["owner_pid"] else None

    def _changed(self, batch_id: str, change: Callable[[Batch], Batch]) -> Batch:
        with self._store.transaction() as connection:
            query = sa.select(_batches).where(_batches.c.batch_id == batch_id)
            row = connection.execute(query).mappings().first()
            if row is None:
                raise HttpError(404, f"There is no batch {batch_id!r}.", code="batch_not_found")
            batch = _batch(row)
            changed = change(batch)
            if changed.status != batch.status:
                times = {**changed.times, f"{changed.status}_at": int(time.time())}
                changed = replace(changed, times=times)
            values = {"run_id": changed.run_id, "body": _body(changed)}
            connection.execute(sa.update(_batches).where(_batches.c.batch_id == batch_id).values(values))
        return changed


def _is_elsewhere(batch: Batch) -> bool:
    return batch.owner_pid != this_process()["owner_pid"] and is_alive(batch.owner_pid, batch.owner_started)


def _body(batch: Batch) -> dict[str, Any]:
    values = asdict(batch)
    return {name: values[name] for name in _BODY}


def _batch(row: Mapping[str, Any]) -> Batch:
    body = {name: value for name, value in row["body"].items() if name in _BODY}
    body["errors"] = tuple(LineError(**error) for error in body["errors"])
    body["counts"] = BatchCounts(**body["counts"])
    return Batch(**{name: row[name] for name in _COLUMNS}, **body)
