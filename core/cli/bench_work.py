"""One `python -m core bench`: its runtime and benchmarks, from the load to the tables of figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.bench import knee
from core.bench.metrics import LATENCY_PERCENTILES, percentile_name
from core.bench.records import BenchView, PointSummary
from core.bench.runner import Benchmarks
from core.bench.spec import BenchSpec
from core.cli.engine import EngineAsked
from core.cli.session import say
from core.errors import BenchError
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.settings import Settings
from core.store import Store

_POLL_S, _TERMINAL_EVERY_S, _LOG_EVERY_S = 0.2, 1.0, 15.0
_STOP_PATIENCE_S = 20.0
_WIDTH, _LABEL = 50, 40
_METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
_TITLES = {
    "throughput": "Throughput Benchmark Result",
    "serve": "Serving Benchmark Result",
    "latency": "Latency Benchmark Result",
}


class Session:
    """One command's runtime and benchmarks; leaves nothing running behind."""

    def __init__(self, settings: Settings) -> None:
        self.runtime = Runtime(settings)
        self.store = Store(settings.catalogue_path)
        self.saved = SavedSettings(self.store)
        self.benchmarks = Benchmarks(self.runtime, self.store, settings)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.benchmarks.close()
        self.runtime.close()
        self.store.close()

    def load(self, asked: EngineAsked) -> None:
        """Load what is asked for, saying how it goes. Raises EngineLoadError, ParameterError."""
        self.runtime.load(asked.spec(self.runtime, self.saved))
        stage = ""
        while (status := self.runtime.status()).phase == "loading":
            if status.stage != stage:
                stage = status.stage
                say(f"engine: {stage}")
            time.sleep(_POLL_S)
        self.runtime.wait_ready()

    def measure(self, spec: BenchSpec, *, quiet: bool = False) -> BenchView:
        """Start it and follow it to its end, printing each point's table unless `quiet`; Ctrl-C stops it.

        Raises BenchError for one that failed, after its finished points.
        """
        benchmark_id = self.benchmarks.start(spec)
        try:
            say(f"benchmark {benchmark_id}: {spec.kind}")
            view = self.follow(benchmark_id, quiet)
        except KeyboardInterrupt:
            self.benchmarks.stop(benchmark_id)
            view = self.benchmarks.wait(benchmark_id, _STOP_PATIENCE_S)
            cut = [point for point in view.points if not point.is_whole and not quiet]
            _print_points(view, cut)
            kept = f"{len(view.points)} points are kept" if view.points else "nothing was measured yet"
            say(f"stopped; {kept}: python -m core bench show {benchmark_id}")
        if view.state == "failed":
            kept = f"{len(view.points)} points are kept: python -m core bench show {benchmark_id}"
            raise BenchError(f"The benchmark failed. {view.message}", hint=kept if view.points else "")
        return view

    def follow(self, benchmark_id: str, quiet: bool) -> BenchView:
        """Wait for the end, showing how far it is; each point's table as soon as it is there."""
        terminal = sys.stderr.isatty()
        every_s = _TERMINAL_EVERY_S if terminal else _LOG_EVERY_S
        printed, shown, stage = 0, time.monotonic(), ""
        while True:
            view = self.benchmarks.view(benchmark_id)
            if not quiet:
                _print_points(view, view.points[printed:])
            printed = len(view.points)
            if view.state != "running":
                return view
            progress = view.progress
            if progress is not None and (progress.stage != stage or time.monotonic() - shown >= every_s):
                stage, shown = progress.stage, time.monotonic()
                failed = f", {progress.failed:,} failed" if progress.failed else ""
                line = (
                    f"{stage}: {progress.done:,} of {progress.total:,}{failed}" if progress.total else stage
                )
                print(f"{line:<60}", end="\r" if terminal else "\n", file=sys.stderr, flush=True)
            time.sleep(_POLL_S)

    def write(self, view: BenchView, output: Path) -> None:
        """The points in vLLM's form: one JSON file, or with several points one JSON a line."""
        texts = [self.benchmarks.path(view.benchmark_id, point.number).read_text() for point in view.points]
        if texts:
            output.write_text("\n".join(texts) + "\n", encoding="utf-8")
            say(f"written to {output}")


def _print_points(view: BenchView, points: Sequence[PointSummary]) -> None:
    for point in points:
        print("\n".join(table(view, point)), flush=True)


def table(view: BenchView, point: PointSummary) -> Iterator[str]:
    """The lines that `vllm bench` prints for such a result; what was not measured is n/a."""
    result = point.result
    yield f"{f' {_TITLES[view.kind]} ':=^{_WIDTH}}"
    repeats = view.spec.repeats if view.spec else 1
    if point.load is not None:
        yield _row("Load:", point.load.title)
    if repeats > 1:
        yield _row("Repeat:", f"{point.repeat + 1} of {repeats}")
    if not point.is_whole:
        yield _row("Stopped before its end:", "yes")
    rows: Callable[[Mapping[str, Any]], Iterator[str]] = {
        "throughput": _throughput,
        "serve": _serve,
        "latency": _latency,
    }[view.kind]
    yield from rows(result)
    yield "=" * _WIDTH


def _throughput(result: Mapping[str, Any]) -> Iterator[str]:
    yield _row("Successful requests:", result.get("num_requests"))
    yield _row("Failed requests:", result.get("failed"))
    yield _row("Benchmark duration (s):", result.get("elapsed_time"))
    yield _row("Total input tokens:", result.get("total_input_tokens"))
    yield _row("Total generated tokens:", result.get("total_output_tokens"))
    yield _row("Request throughput (req/s):", result.get("requests_per_second"))
    yield _row("Output token throughput (tok/s):", result.get("output_throughput"))
    yield _row("Total token throughput (tok/s):", result.get("tokens_per_second"))


def _serve(result: Mapping[str, Any]) -> Iterator[str]:
    yield _row("Successful requests:", result.get("completed"))
    yield _row("Failed requests:", result.get("failed"))
    yield _row("Benchmark duration (s):", result.get("duration"))
    yield _row("Total input tokens:", result.get("total_input_tokens"))
    yield _row("Total generated tokens:", result.get("total_output_tokens"))
    yield _row("Request throughput (req/s):", result.get("request_throughput"))
    if result.get("request_goodput") is not None:
        yield _row("Request goodput (req/s):", result["request_goodput"])
    yield _row("Output token throughput (tok/s):", result.get("output_throughput"))
    yield _row("Peak output token throughput (tok/s):", result.get("max_output_tokens_per_s"))
    yield _row("Peak concurrent requests:", result.get("max_concurrent_requests"))
    yield _row("Total token throughput (tok/s):", result.get("total_token_throughput"))
    for metric, words in _METRICS.items():
        if f"mean_{metric}_ms" not in result:
            continue
        yield f"{words:-^{_WIDTH}}"
        for name in ("mean", "median", *_percentiles(result, metric)):
            yield _row(f"{name.title()} {metric.upper()} (ms):", result[f"{name}_{metric}_ms"])


def _latency(result: Mapping[str, Any]) -> Iterator[str]:
    yield _row("Iterations:", len(result.get("latencies") or ()))
    yield _row("Failed requests:", result.get("failed"))
    yield _row("Avg latency (s):", result.get("avg_latency"), digits=4)
    for share in LATENCY_PERCENTILES:
        value = (result.get("percentiles") or {}).get(str(share))
        yield _row(f"{share}% percentile latency (s):", value, digits=4)
    yield _row("Output token throughput (tok/s):", result.get("output_throughput"))


def _percentiles(result: Mapping[str, Any], metric: str) -> list[str]:
    """Names as in the fields: "p50", "p99.9", lowest first."""
    ending = f"_{metric}_ms"
    found = [
        name.removesuffix(ending)[1:] for name in result if name.startswith("p") and name.endswith(ending)
    ]
    return [percentile_name(float(share)) for share in sorted(found, key=float)]


def _row(label: str, value: Any, digits: int = 2) -> str:
    if value is None:
        words = "n/a"
    elif isinstance(value, float):
        words = f"{value:.{digits}f}"
    else:
        words = str(value)
    return f"{label:<{_LABEL}} {words:<{_WIDTH - _LABEL - 1}}".rstrip()


def knee_line(view: BenchView) -> str | None:
    """Where a sweep's knee is, in words; None without a sweep."""
    sweep = view.spec.sweep if view.spec else None
    if sweep is None:
        return None
    points = knee.load_points(view.points, sweep.over)
    at = knee.knee(points, sweep.least_gain)
    if at is None:
        return "no knee: output tokens/s still grew at the highest load"
    load, rate = points[at].load, points[at].output_throughput
    unit = "requests/s" if sweep.over == "request_rate" else "at once"
    return f"the knee is at {load:g} {unit}: {rate:,.0f} output tokens/s; more load brings hardly more"
