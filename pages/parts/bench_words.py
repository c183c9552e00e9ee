"""A benchmark in words: its kind, state, headline, and the figures of one point with what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.bench import figures
from core.bench.records import BenchView, PointSummary
from pages.parts.bench_workload import workload_words
from pages.parts.charts import counted, duration, per_second
from pages.parts.markdown import plain_text

KINDS = {"throughput": "Throughput", "serve": "Serving", "latency": "Latency"}
LATENCIES = {
    "ttft": ("TTFT", "Time to first token: request sent to its first token."),
    "tpot": ("TPOT", "Time per output token: (E2EL - TTFT) / (output tokens - 1), for each request."),
    "itl": ("ITL", "Inter-token latency: every gap between two tokens, of all requests together."),
    "e2el": ("E2EL", "End-to-end latency: request sent to its last token."),
}
STATES = {
    "running": "measuring",
    "complete": "",
    "stopped": "stopped",
    "failed": "failed",
    "interrupted": "interrupted",
}
_BADGES = {"running": "blue", "stopped": "orange", "failed": "red", "interrupted": "orange"}


def state_badge(view: BenchView) -> str:
    """Markdown for what is not simply done; "" otherwise."""
    color = _BADGES.get(view.state)
    return f" :{color}-badge[{STATES[view.state]}]" if color else ""


def headline(view: BenchView) -> tuple[str, str]:
    """(figure, what it is): the one that says most, of the point where it is best. ("–", "") without any."""
    if view.kind == "latency":
        times = _values(view, "avg_latency")
        return (duration(min(times)), "a batch") if times else ("–", "")
    best = _values(view, "output_throughput")
    if best:
        up_to = "up to " if len({point.load for point in view.points}) > 1 else ""
        return f"{up_to}{per_second(max(best))}", "output tokens/s"
    total = _values(view, "tokens_per_second") or _values(view, "total_token_throughput")
    return (per_second(max(total)), "tokens/s, prompts included") if total else ("–", "")


def _values(view: BenchView, name: str) -> list[float]:
    return [value for point in view.points if (value := point.result.get(name)) is not None]


def about(view: BenchView) -> str:
    """Kind, workload, model, engine and day, in a line; Markdown."""
    words = [KINDS.get(view.kind, view.kind)]
    if view.spec is not None:
        words.append(asked_words(view))
    if view.source:
        words.append(f"from {view.source}")
    environment = view.environment
    words += [
        str(environment[name])
        for name in ("model", "engine")
        if isinstance(environment.get(name), str) and environment[name]
    ]
    words.append(view.created_at.astimezone().strftime("%d %b %Y, %H:%M"))
    return plain_text(" · ".join(words))


def asked_words(view: BenchView) -> str:
    """What was asked, in a few words; plain text."""
    spec = view.spec
    if spec.kind == "latency":
        return (
            f"{spec.num_iters:,} x {counted(spec.batch_size, 'prompt')} at once, "
            f"{spec.workload.input_len:,} tokens in, {spec.workload.output_len:,} out"
        )
    return workload_words(spec.workload)


def point_title(point: PointSummary, repeats: int) -> str:
    """4 requests/s, repeat 2."""
    load = point.load.title if point.load else ""
    again = f"repeat {point.repeat + 1}" if repeats > 1 else ""
    words = ", ".join(part for part in (load, again) if part) or "all requests"
    return words[0].upper() + words[1:]


def metric_words(name: str, value: float | None) -> str:
    """A field of a result as text with its unit; "–" when it was not measured."""
    if value is None:
        return "–"
    if name.endswith("_ms"):
        return milliseconds(value)
    return duration(value) if name.endswith("latency") else per_second(value)


def milliseconds(value: float | None) -> str:
    """0.42 ms, 8.3 ms, 85 ms, 1.2 s."""
    if value is None:
        return "–"
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 10 else duration(value / 1000)


def main_figures(kind: str, result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(title, figure, what it means) of one point, those first that matter most."""
    found: list[tuple[str, str, str]] = []

    def add(name: str, title: str, help: str, words: str | None = None) -> None:
        if result.get(name) is not None:
            found.append((title, words or metric_words(name, result[name]), help))

    if kind == "latency":
        add("avg_latency", "Batch latency", "The mean time of a whole batch: sent to last token.")
    for name, title in (("output_throughput", "Output tokens/s"), ("request_throughput", "Requests/s")):
        add(name, title, figures.RATES[name].help)
    add("requests_per_second", "Requests/s", "Answered requests by wall time.")
    for name in ("total_token_throughput", "tokens_per_second"):
        help = "Prompt and generated tokens by wall time. Cached prompt tokens are in it: it is no speed."
        add(name, "Total tokens/s", help)
    add("request_goodput", "Goodput/s", "Requests per second that reached every goal.")
    for name, (title, help) in LATENCIES.items():
        add(f"median_{name}_ms", f"{title}, median", f"{help} Half of them took less.")
    seconds = result.get("duration", result.get("elapsed_time"))
    if seconds is not None:
        found.append(("Took", duration(seconds), "From the first request to the last answer."))
    done = result.get("completed", result.get("num_requests"))
    if done is not None:
        found.append(("Answered", f"{done:,}", "Requests with an answer."))
    failed = result.get("failed")
    if failed is not None:
        found.append(("Failed", f"{failed:,}", "Requests without an answer: in no latency, never left out."))
    return found


def latency_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each latency with its mean, median, deviation and percentiles; []: none was measured."""
    rows = []
    for name, (title, _help) in LATENCIES.items():
        fields = {
            "Mean": f"mean_{name}_ms", "Median": f"median_{name}_ms", "Deviation": f"std_{name}_ms",
        }  # fmt: skip
        start, end = "p", f"_{name}_ms"
        for field in result:
            is_percentile = field.startswith(start) and field.endswith(end) and field[1].isdigit()
            if is_percentile and field != f"p50{end}":  # the median stands there already
                fields[field.removesuffix(end)] = field
        if any(result.get(field) is not None for field in fields.values()):
            rows.append(
                {"": title} | {label: milliseconds(result.get(field)) for label, field in fields.items()}
            )
    return rows
