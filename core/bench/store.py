"""Benchmarks as they are kept: a row for each in the catalogue, a file for each of its points.

A point's file is written, flushed to disk and given its name before the catalogue hears of it: what
is listed is there whole, whatever ends the process.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.bench.records import BenchState, BenchView, PointSummary
from core.bench.spec import BenchSpec, Load
from core.catalogue_schema import benchmark_points as _points
from core.catalogue_schema import benchmarks as _benchmarks
from core.errors import BenchError
from core.settings import Settings
from core.store import Store, is_alive, new_id, this_process

_LEFT_BEHIND_S = 24 * 3600.0
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")  # as `new_id` makes them
_NOBODY = {"owner_pid": None, "owner_started": None}


class BenchStore:
    """All benchmarks of one workspace, by any process. Every method is safe from any thread."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._folder = settings.benchmarks_dir

    def add(
        self,
        *,
        name: str,
        kind: str,
        spec: BenchSpec | None,
        environment: Mapping[str, Any],
        source: str | None = None,
    ) -> str:
        """A new benchmark that this process works on; one with a `source` is an imported file, and done.

        Raises BenchError where the workspace can't be written.
        """
        benchmark_id = new_id()
        with _writing(self._folder):
            (self._folder / benchmark_id).mkdir(parents=True)
        values = {
            "benchmark_id": benchmark_id,
            "created_at": dt.datetime.now(dt.UTC),
            "name": name,
            "kind": kind,
            "state": "running" if source is None else "complete",
            "spec": spec.model_dump(mode="json") if spec else None,
            "environment": dict(environment),
            "source": source,
            **(this_process() if source is None else _NOBODY),
        }
        self._store.execute(sa.insert(_benchmarks).values(values))
        return benchmark_id

    def end(self, benchmark_id: str, state: BenchState, message: str = "") -> None:
        """Say how it ended; nobody works on it any more."""
        self._change(benchmark_id, state=state, message=message, **_NOBODY)

    def add_point(self, benchmark_id: str, summary: PointSummary, text: str) -> None:
        """Keep a finished point: its file of JSON `text` first, then its row. Raises BenchError as `add`."""
        with _writing(self._folder):
            _write_whole(self._file(benchmark_id, summary.number), text)
        values = {
            "benchmark_id": benchmark_id,
            "number": summary.number,
            "repeat": summary.repeat,
            "load": summary.load.model_dump(mode="json") if summary.load else None,
            "result": dict(summary.result),
            "is_whole": summary.is_whole,
        }
        # a commit may have reached the disk although it said that it was full, and is done again then
        self._store.execute(sa.insert(_points).prefix_with("OR REPLACE").values(values))

    def view(self, benchmark_id: str) -> BenchView:
        """Raises BenchError when there is none."""
        row = self._store.first(sa.select(_benchmarks).where(_benchmarks.c.benchmark_id == benchmark_id))
        if row is None:
            raise BenchError(f"There is no benchmark {benchmark_id!r}.", hint="It was deleted.")
        return _view(row, self._summaries([benchmark_id])[benchmark_id])

    def recent(self, limit: int) -> tuple[BenchView, ...]:
        """The newest first."""
        query = sa.select(_benchmarks).order_by(
            _benchmarks.c.created_at.desc(), _benchmarks.c.benchmark_id.desc()
        )
        rows = self._store.all(query.limit(limit))
        points = self._summaries([row["benchmark_id"] for row in rows])
        return tuple(_view(row, points[row["benchmark_id"]]) for row in rows)

    def path(self, benchmark_id: str, number: int) -> Path:
        """The file of one point. Raises BenchError when there is no such point."""
        if not any(point.number == number for point in self.view(benchmark_id).points):
            raise BenchError(f"The benchmark {benchmark_id} has no point {number}.")
        return self._file(benchmark_id, number)

    def read(self, benchmark_id: str, number: int) -> bytes:
        """What the file of one point holds. Raises BenchError when it is gone."""
        path = self.path(benchmark_id, number)
        try:
            return path.read_bytes()
        except OSError as error:
            raise BenchError(
                f"Point {number} of the benchmark {benchmark_id} can't be read: {error.strerror}.",
                hint="Its summary is kept; measure it again for the details.",
            ) from error

    def rename(self, benchmark_id: str, name: str) -> None:
        self._change(benchmark_id, name=name)

    def set_baseline(self, benchmark_id: str | None) -> None:
        """The one that others are held against; None: none is."""
        if benchmark_id is not None:
            self.view(benchmark_id)
        with self._store.transaction() as connection:
            connection.execute(sa.update(_benchmarks).values(is_baseline=False))
            chosen = sa.update(_benchmarks).where(_benchmarks.c.benchmark_id == benchmark_id)
            connection.execute(chosen.values(is_baseline=True))

    def delete(self, benchmark_id: str) -> None:
        """Remove it with its points. Raises BenchError when there is none."""
        self.view(benchmark_id)  # only what the catalogue knows becomes a path
        with self._store.transaction() as connection:
            connection.execute(sa.delete(_points).where(_points.c.benchmark_id == benchmark_id))
            connection.execute(sa.delete(_benchmarks).where(_benchmarks.c.benchmark_id == benchmark_id))
        shutil.rmtree(self._folder / benchmark_id, ignore_errors=True)

    @contextlib.contextmanager
    def files_read(self) -> Iterator[frozenset[str]]:
        """The names of files that benchmarks read; while it is open, no process begins another one."""
        with self._store.transaction() as connection:
            specs = connection.execute(sa.select(_benchmarks.c.spec)).scalars()
            paths = [((spec or {}).get("workload") or {}).get("path") for spec in specs]
            # by name alone: the workspace may have been moved since
            yield frozenset(Path(path).name for path in paths if path)

    def sweep(self) -> None:
        """Remove folders without a benchmark and without a point: a kill or a full disk left them behind."""
        if not self._folder.is_dir():
            return
        for entry in self._folder.iterdir():
            if not _ID.fullmatch(entry.name) or time.time() - entry.stat().st_mtime < _LEFT_BEHIND_S:
                continue
            known = self._store.first(sa.select(_benchmarks).where(_benchmarks.c.benchmark_id == entry.name))
            # points stay: of a catalogue that was lost they are all there is, and can be imported
            if known is None and not any(entry.glob("point-*.json")):
                shutil.rmtree(entry)

    def _file(self, benchmark_id: str, number: int) -> Path:
        return self._folder / benchmark_id / f"point-{number:03}.json"

    def _change(self, benchmark_id: str, **values: Any) -> None:
        self._store.execute(
            sa.update(_benchmarks).where(_benchmarks.c.benchmark_id == benchmark_id).values(values)
        )

    def _summaries(self, ids: Iterable[str]) -> Mapping[str, tuple[PointSummary, ...]]:
        query = sa.select(_points).where(_points.c.benchmark_id.in_(list(ids)))
        found: dict[str, tuple[PointSummary, ...]] = defaultdict(tuple)
        for row in self._store.all(query.order_by(_points.c.number)):
            load = Load.model_validate(row["load"]) if row["load"] else None
            found[row.pop("benchmark_id")] += (PointSummary(**{**row, "load": load}),)
        return found


def file_read(spec: BenchSpec | None) -> str:
    """The name of the file that a benchmark reads; "" where it reads none."""
    path = getattr(spec.workload, "path", None) if spec else None
    return Path(path).name if path else ""


def to_text(document: Mapping[str, Any]) -> str:
    """Strict JSON, as other tools read it: no NaN."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _view(row: Mapping[str, Any], points: tuple[PointSummary, ...]) -> BenchView:
    """One whose process died (killed, power cut) reads as interrupted: nobody was left to say so."""
    state, message = row["state"], row["message"]
    if state == "running" and not is_alive(row["owner_pid"], row["owner_started"]):
        state, message = "interrupted", "The process that measured it ended."
    return BenchView(
        benchmark_id=row["benchmark_id"],
        name=row["name"],
        created_at=row["created_at"],
        state=state,
        message=message,
        kind=row["kind"],
        spec=BenchSpec.model_validate(row["spec"]) if row["spec"] else None,
        environment=row["environment"],
        points=points,
        is_baseline=row["is_baseline"],
        source=row["source"],
    )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BenchError(
            f"The benchmark can't be kept in {folder}: {error.strerror}.",
            hint="Check that the workspace folder has room and is yours.",
        ) from error


def _write_whole(path: Path, text: str) -> None:
    """The file is there whole or not at all, also after a power cut."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # on a full disk half a file takes what others need
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
