"""The catalogue: one SQLite file that lists runs, conversations and comparisons.

Safe with several processes (write-ahead log, busy timeout): the app and any
number of `python -m core` at once. What a run holds lies in its own folder
(`core.runs`); the catalogue only says that it exists and how far it is.
Times are UTC.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import sqlalchemy as sa

from core import catalogue_schema
from core.catalogue_schema import runs as _runs
from core.errors import WorkbenchError

RunState = Literal["draft", "queued", "running", "paused", "stopped", "interrupted", "failed", "finished"]
MessageState = Literal["generating", "complete", "stopped", "interrupted", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as the catalogue knows it. `done` rows have ended: ok, error or skipped."""

    run_id: str
    created_at: dt.datetime
    name: str
    state: RunState
    message: str = ""
    model: str = ""
    rows: int = 0
    ok: int = 0
    errors: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    wall_s: float = 0.0
    owner_pid: int | None = None
    owner_started: float | None = None
    priority: int = 0
    shared: int = 0

    @property
    def done(self) -> int:
        return self.ok + self.errors + self.skipped

    @property
    def is_at_work(self) -> bool:
        """Whether a process works on it or has it in its queue; a pause with an owner ends by itself."""
        return self.state in ("running", "queued") or (self.state == "paused" and self.owner_pid is not None)


def new_id() -> str:
    """A name that sorts by time and is safe as a folder: 20261121-034512-9f3a2c."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def this_process() -> dict[str, Any]:
    """The owner columns of a run that this process works on."""
    return {"owner_pid": os.getpid(), "owner_started": psutil.Process().create_time()}


def _run_record(row: dict[str, Any]) -> RunRecord:
    """A run whose owner died (killed, power cut) reads as interrupted: nobody was left to say so."""
    record = RunRecord(**row)
    if record.is_at_work and not is_alive(record.owner_pid, record.owner_started):
        return replace(record, state="interrupted")
    return record


def is_alive(pid: int | None, started: float | None) -> bool:
    """Whether the process that `this_process` described still runs."""
    if pid is None or started is None:
        return False
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


class Store:
    """The catalogue at `path`, made on first use. Every method is one transaction, from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

        @sa.event.listens_for(self._engine, "connect")
        def _configure(connection: Any, _record: Any) -> None:
            # WAL lets pages read while a job writes; FULL makes a commit survive a power cut
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            # SQLite itself knows the case of ASCII letters only
            connection.create_function("casefold", 1, str.casefold, deterministic=True)

        with self._engine.begin() as connection:
            catalogue_schema.create(connection)

    def close(self) -> None:
        self._engine.dispose()

    # -- runs ---------------------------------------------------------------

    def add_run(self, record: RunRecord) -> None:
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        self.execute(sa.insert(_runs).values(values))

    def update_run(self, run_id: str, **values: Any) -> None:
        """Set columns of one run, by the names of RunRecord."""
        self.execute(sa.update(_runs).where(_runs.c.run_id == run_id).values(values))

    def run(self, run_id: str) -> RunRecord | None:
        row = self.first(sa.select(_runs).where(_runs.c.run_id == run_id))
        return _run_record(row) if row else None

    def runs(self, limit: int = 50, *, drafts: bool = False) -> list[RunRecord]:
        """The newest runs first; drafts (staged, never started) only if asked for."""
        query = sa.select(_runs).order_by(_runs.c.created_at.desc(), _runs.c.run_id.desc()).limit(limit)
        if not drafts:
            query = query.where(_runs.c.state != "draft")
        return [_run_record(row) for row in self.all(query)]

    def runs_in_state(self, state: RunState) -> list[RunRecord]:
        """Oldest first."""
        query = sa.select(_runs).where(_runs.c.state == state).order_by(_runs.c.created_at, _runs.c.run_id)
        return [record for record in map(_run_record, self.all(query)) if record.state == state]

    def delete_run(self, run_id: str) -> None:
        self.execute(sa.delete(_runs).where(_runs.c.run_id == run_id))

    # -- statements: for what keeps tables of its own in the catalogue ---------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Several statements that are done together or not at all. Raises WorkbenchError on a full disk."""
        try:
            with self._engine.begin() as connection:
                # what is read here must still hold when it is written: nobody else writes in between
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
        except sa.exc.OperationalError as error:
            raise WorkbenchError(
                f"The catalogue can't be written: {error.orig}.",
                hint="Check that the workspace folder has room and is yours.",
            ) from error

    def execute(self, statement: sa.Executable) -> None:
        """One statement that writes. Raises WorkbenchError on a full disk."""
        with self.transaction() as connection:
            connection.execute(statement)

    def first(self, query: sa.Select[Any]) -> dict[str, Any] | None:
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return dict(row) if row else None

    def all(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]
