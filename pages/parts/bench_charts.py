"""A point of a benchmark in pictures. Every function is pure: records or samples in, a figure out.

Times in records and samples are seconds; figures show milliseconds, or seconds where those are long.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from core.bench.records import EngineSample, RequestRecord
from pages.parts.charts import duration
from pages.parts.run_charts import ACCENT

# all readable on the light and on the dark background
SECOND, LIMIT, QUIET = "#C77A1E", "#D1494B", "#8494A3"
_HEIGHT = 250
_MOST_SAMPLES = 600
_BINS = 40
_LONG_MS = 10_000
MOST_REQUESTS = 200
"""Requests that a timeline shows; more would be thinner than a pixel."""


def frame(*traces: Any, x: str, y: str, height: int = _HEIGHT, legend: bool = False) -> go.Figure:
    """A figure with its axes named, theme-neutral."""
    figure = go.Figure(list(traces))
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 16, "t": 28 if legend else 12, "b": 10},
        xaxis={"title": x, "rangemode": "tozero", "zeroline": False},
        yaxis={"title": y, "rangemode": "tozero", "zeroline": False},
        showlegend=legend,
        bargap=0.04,
    )
    if legend:
        figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    return figure


def _line(x: Sequence[float], y: Sequence[float | None], name: str, color: str, **more: Any) -> go.Scatter:
    return go.Scatter(
        x=list(x), y=list(y), name=name, mode="lines", line={"color": color, "width": 2}, **more
    )


# -- over time ----------------------------------------------------------------------


def thinned(samples: Sequence[EngineSample], most: int = _MOST_SAMPLES) -> list[EngineSample]:
    """At most about `most` of them, evenly, and the last one. Their counts are totals: rates stay true."""
    if len(samples) <= most:
        return list(samples)
    step = -(-len(samples) // most)
    kept = list(samples[::step])
    return kept if kept[-1] is samples[-1] else [*kept, samples[-1]]


def rates(
    samples: Sequence[EngineSample], total: Callable[[EngineSample], int], window_s: float = 1.0
) -> list[float | None]:
    """What `total` grew by per second, over the `window_s` before each sample; None for the first."""
    found: list[float | None] = []
    start = 0
    for index, sample in enumerate(samples):
        while start + 1 < index and sample.at_s - samples[start + 1].at_s >= window_s:
            start += 1
        passed = sample.at_s - samples[start].at_s
        grown = total(sample) - total(samples[start])
        found.append(grown / passed if passed > 0 else None)
    return found


def from_zero(samples: Sequence[EngineSample]) -> list[EngineSample]:
    """With the beginning of the point before them, where nothing was counted yet."""
    if not samples or samples[0].at_s <= 0:
        return list(samples)
    nothing = {"at_s": 0.0, "output_tokens": 0, "prompt_tokens": 0, "prefix_queries": 0, "prefix_hits": 0}
    return [replace(samples[0], **nothing), *samples]


def output_rate(samples: Sequence[EngineSample]) -> go.Figure:
    """Output tokens/s over the seconds of a point."""
    samples = from_zero(thinned(samples))
    line = _line(
        [sample.at_s for sample in samples],
        rates(samples, lambda sample: sample.output_tokens),
        "Output tokens/s",
        ACCENT,
        fill="tozeroy",
        hovertemplate="%{y:,.0f} output tokens/s at %{x:.1f} s<extra></extra>",
    )
    return frame(line, x="Seconds", y="Output tokens/s").update_yaxes(tickformat=",")


def output_rate_of_records(rates_per_s: Sequence[float]) -> go.Figure:
    """The same from the requests' own token times: one value for each second from the first request."""
    bars = go.Bar(
        x=[second + 0.5 for second in range(len(rates_per_s))],
        y=list(rates_per_s),
        width=1,
        marker={"color": ACCENT, "line": {"width": 0}},
        customdata=list(range(1, len(rates_per_s) + 1)),
        hovertemplate="%{y:,.0f} output tokens in second %{customdata}<extra></extra>",
    )
    return frame(bars, x="Seconds", y="Output tokens/s").update_yaxes(tickformat=",")


def engine_load(samples: Sequence[EngineSample]) -> go.Figure:
    """Requests that the engine works on, and those that wait in it."""
    samples = thinned(samples)
    seconds = [sample.at_s for sample in samples]
    lines = [
        _line(seconds, values, name, color, hovertemplate=f"{name}: %{{y:,}} at %{{x:.1f}} s<extra></extra>")
        for name, values, color in (
            ("Running", [sample.running for sample in samples], ACCENT),
            ("Waiting", [sample.waiting for sample in samples], SECOND),
        )
    ]
    return frame(*lines, x="Seconds", y="Requests", legend=True).update_yaxes(tickformat=",")


def hit_rates(samples: Sequence[EngineSample]) -> list[float | None]:
    """Share of the prompt tokens read since the sample before that the prefix cache held; None: none read."""
    found: list[float | None] = [None]
    for before, after in itertools.pairwise(samples):
        asked = after.prefix_queries - before.prefix_queries
        found.append((after.prefix_hits - before.prefix_hits) / asked if asked > 0 else None)
    return found[: len(samples)]


def device_use(samples: Sequence[EngineSample]) -> go.Figure | None:
    """How busy the processor and the GPU are, in percent; None where nothing tells."""
    return _measured(
        samples,
        (
            ("CPU (of one core)", lambda sample: sample.cpu_percent, SECOND),
            ("GPU", lambda sample: sample.gpu_percent, ACCENT),
        ),
        "Percent",
        "%{y:,.0f}%",
    )


def device_memory(samples: Sequence[EngineSample]) -> go.Figure | None:
    """Memory in use, in GiB; None where nothing tells."""
    return _measured(
        samples,
        (
            ("RAM", lambda sample: _gibibytes(sample.ram_bytes), SECOND),
            ("GPU memory", lambda sample: _gibibytes(sample.gpu_memory_bytes), ACCENT),
        ),
        "GiB",
        "%{y:,.2f} GiB",
    )


def device_power(samples: Sequence[EngineSample]) -> go.Figure | None:
    """What the GPUs draw, in watts; None where nothing tells."""
    return _measured(samples, (("Power", lambda sample: sample.power_w, ACCENT),), "Watts", "%{y:,.0f} W")


def _gibibytes(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 2**30


def _measured(
    samples: Sequence[EngineSample],
    series: Sequence[tuple[str, Callable[[EngineSample], float | None], str]],
    unit: str,
    words: str,
) -> go.Figure | None:
    samples = thinned(samples)
    lines = []
    for name, value, color in series:
        values = [value(sample) for sample in samples]
        if sum(one is not None for one in values) > 1:
            hover = f"{name}: {words} at %{{x:.1f}} s<extra></extra>"
            lines.append(_line([sample.at_s for sample in samples], values, name, color, hovertemplate=hover))
    return frame(*lines, x="Seconds", y=unit, legend=True) if lines else None


# -- request by request ---------------------------------------------------------------


def distribution(
    values_ms: np.ndarray,
    *,
    of: str,
    percentiles: Sequence[float] = (50, 99),
    limit_ms: float | None = None,
) -> go.Figure:
    """How often each latency came. A long tail ends in a last bar, "and more"; `limit_ms`: the goal."""
    longest = float(values_ms.max())
    end = min(longest, 2.5 * float(np.percentile(values_ms, 99))) or 1.0
    start = 0.0 if values_ms.min() < end / 3 else float(values_ms.min())
    if end - start < 1e-9 * end:
        start = 0.0
    counts, edges = np.histogram(np.minimum(values_ms, end), bins=_BINS, range=(start, end))
    scale, unit = (1000, "s") if end >= _LONG_MS else (1, "ms")
    names = [f"{low / scale:,.4g} to {high / scale:,.4g} {unit}" for low, high in itertools.pairwise(edges)]
    if longest > end:
        names[-1] = f"{edges[-2] / scale:,.4g} {unit} and more, up to {longest / scale:,.4g} {unit}"
    bars = go.Bar(
        x=(edges[:-1] + edges[1:]) / 2 / scale,
        y=counts,
        width=float(edges[1] - edges[0]) / scale,
        marker={"color": ACCENT, "line": {"width": 0}},
        customdata=names,
        hovertemplate=f"%{{customdata}}: %{{y:,}} {of}<extra></extra>",
    )
    figure = frame(bars, x=unit, y=of.capitalize()).update_layout(margin={"t": 44})
    figure.update_yaxes(tickformat=",")
    for place, percentile in enumerate(percentiles):
        value = float(np.percentile(values_ms, percentile))
        name = "median" if percentile == 50 else f"p{percentile:g}"
        _mark(figure, value / scale, f"{name} {short_ms(value)}", QUIET, level=place % 2)
    if limit_ms is not None and limit_ms <= end * 1.5:
        _mark(figure, limit_ms / scale, f"goal {short_ms(limit_ms)}", LIMIT, level=0)
        end = max(end, limit_ms)
    return figure.update_xaxes(range=[start / scale, end / scale * 1.02], rangemode="normal")


def _mark(figure: go.Figure, x: float, words: str, color: str, *, level: int) -> None:
    figure.add_vline(x=x, line={"color": color, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        x=x, y=1 + 0.09 * level, yref="paper", yanchor="bottom", text=words, showarrow=False,
        font={"size": 11, "color": color},
    )  # fmt: skip


def short_ms(value: float) -> str:
    """8.3 ms, 85 ms, 1.2 s."""
    return f"{value:.2g} ms" if value < 10 else duration(value / 1000)


def timeline(records: Sequence[RequestRecord]) -> go.Figure:
    """The first requests, one above the other: waiting for a place, reading the prompt, writing."""
    shown = sorted(records, key=lambda record: record.start_s - record.queue_s)[:MOST_REQUESTS]
    parts: dict[str, tuple[str, list[tuple[int, float, float]]]] = {
        "Waits for a place": (QUIET, []),
        "To the first token": (SECOND, []),
        "Writes": (ACCENT, []),
        "Answered, first token not timed": (ACCENT, []),
        "Failed": (LIMIT, []),
    }
    for row, record in enumerate(shown):
        if record.queue_s > 0:
            parts["Waits for a place"][1].append((row, record.start_s - record.queue_s, record.queue_s))
        if not record.ok:
            parts["Failed"][1].append((row, record.start_s, max(record.e2el_s or 0, 0.01)))
            continue
        if record.ttft_s is not None:
            parts["To the first token"][1].append((row, record.start_s, record.ttft_s))
        if record.e2el_s is not None and record.ttft_s is not None:
            wrote_s = record.e2el_s - record.ttft_s
            parts["Writes"][1].append((row, record.start_s + record.ttft_s, wrote_s))
        elif record.e2el_s is not None:
            parts["Answered, first token not timed"][1].append((row, record.start_s, record.e2el_s))
    bars = [
        go.Bar(
            name=name, orientation="h", marker={"color": color, "line": {"width": 0}},
            opacity=0.35 if color == QUIET else 1,
            y=[row for row, _from, _s in spans], base=[begin for _row, begin, _s in spans],
            x=[seconds for _row, _from, seconds in spans],
            customdata=[_words_of(shown[row], duration(seconds)) for row, _from, seconds in spans],
            hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
        )
        for name, (color, spans) in parts.items()
        if spans
    ]  # fmt: skip
    height = int(min(560, 130 + 7 * len(shown)))
    figure = frame(*bars, x="Seconds", y="Requests", height=height, legend=True)
    figure.update_layout(barmode="overlay", bargap=0.15)
    return figure.update_yaxes(autorange="reversed", showgrid=False, rangemode="normal", tickformat=",d")


def _words_of(record: RequestRecord, seconds: str) -> str:
    words = f"{seconds}, {record.input_len:,} tokens in, {record.output_len:,} out"
    return words if record.error is None else f"{words}, {html.escape(record.error[:120])}"


def batch_latencies(latencies_s: Sequence[float]) -> go.Figure:
    """How long each batch of a latency benchmark took, in order."""
    bars = go.Bar(
        x=list(range(1, len(latencies_s) + 1)), y=list(latencies_s),
        marker={"color": ACCENT, "line": {"width": 0}},
        hovertemplate="Batch %{x}: %{y:.3f} s<extra></extra>",
    )  # fmt: skip
    return frame(bars, x="Batch", y="Seconds").update_xaxes(tickformat=",d")
