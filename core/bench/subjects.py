"""Benchmarks read with all their details, to be compared: kept ones, and files that are not kept."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

from core.bench import figures, files
from core.bench.differences import Subject
from core.bench.records import BenchView, Point, PointSummary
from core.errors import BenchError

if TYPE_CHECKING:
    from core.bench.runner import Benchmarks


def kept(benchmarks: Benchmarks, benchmark_id: str) -> Subject:
    """A benchmark of this workspace. A point whose file is gone comes without its requests.

    Raises BenchError when there is no such benchmark.
    """
    view = benchmarks.view(benchmark_id)
    points: list[Point] = []
    for summary in view.points:
        try:
            points.append(benchmarks.point(benchmark_id, summary.number))
        except BenchError:  # deleted by hand: its summary still compares
            points.append(figures.without_details(summary))
    return Subject(view, tuple(points))


def of_file(path: Path) -> Subject:
    """A file by `vllm bench`, or one of ours. Raises BenchError for anything else."""
    try:
        if path.stat().st_size > files.MAX_BYTES:
            raise BenchError(f"{path.name} is too large to be a result.", hint="Choose another file.")
        data, changed = path.read_bytes(), path.stat().st_mtime
    except OSError as error:
        raise BenchError(f"{path} can't be read: {error.strerror}.", hint="Check the path.") from error
    contents = files.load(data)
    summaries = tuple(
        PointSummary(
            number=point.number,
            repeat=point.repeat,
            load=point.load,
            result=point.result,
            is_whole=point.is_whole,
        )
        for point in contents.points
    )
    view = BenchView(
        benchmark_id=path.name,
        name=path.stem,
        created_at=dt.datetime.fromtimestamp(changed, dt.UTC),
        state="complete",
        message="",
        kind=contents.kind,
        spec=contents.spec,
        environment=contents.environment,
        points=summaries,
        source=path.name,
    )
    return Subject(view, contents.points)
