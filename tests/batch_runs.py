"""Batch runs: what they need of a workspace, one done to its end, tables written and read."""

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core.batch import Progress
from core.jobs import Jobs
from core.runs import Run
from core.runtime import Runtime
from core.store import Store


class Batches(NamedTuple):
    runtime: Runtime
    store: Store
    jobs: Jobs


@contextlib.contextmanager
def opened(runtime: Runtime) -> Iterator[Batches]:
    """The catalogue and the queue of the runtime's workspace, for as long as the test lasts."""
    with (
        contextlib.closing(Store(runtime.settings.catalogue_path)) as store,
        contextlib.closing(Jobs(runtime, store)) as jobs,
    ):
        yield Batches(runtime, store, jobs)


def finish(jobs: Jobs, run: Run, state: str = "finished", timeout_s: float = 60) -> Progress:
    """Start the run and wait for its end, which must be `state`."""
    jobs.start(run.run_id)
    progress = jobs.wait(run.run_id, timeout_s=timeout_s)
    assert progress.state == state, progress.message
    return progress


def write_csv(path: Path, columns: list[str], rows: list[list]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def exported(run: Run, tmp_path: Path, **options) -> list[dict]:
    """The rows of the run's table, as it writes them."""
    run.export(tmp_path / "out.jsonl", **options)
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
