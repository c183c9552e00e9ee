"""A benchmark, or several beside each other, as one HTML page that opens anywhere, or as Markdown to paste.

The page holds everything it shows: it loads nothing and runs nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from core.bench import figures, knee, metrics
from core.bench.differences import (
    NO_DIFFERENCE,
    ONE_REPEAT,
    Comparison,
    Difference,
    Subject,
    conditions,
    measured,
)
from core.bench.figures import Figure, Metric
from core.bench.records import BenchView, Point
from core.bench.report_charts import Bar, Series, bars, histogram, lines, number
from core.bench.report_writing import Cell, Report, Section, html, markdown
from core.bench.spec import Load

if TYPE_CHECKING:
    from core.bench.engines import Bar as EngineBar

_TITLES = {"throughput": "Throughput", "serve": "Serving", "latency": "Latency"}
_LATENCIES = {"ttft": "Time to first token", "tpot": "Time per output token", "itl": "Inter-token latency",
              "e2el": "End-to-end latency"}  # fmt: skip
_ERRORS_SHOWN = 10
_BARS_SHOWN = 12


def to_html(view: BenchView, points: Sequence[Point]) -> str:
    """One benchmark with the details of its points."""
    return html(_of_one(view, points, charts=True))


def to_markdown(view: BenchView, points: Sequence[Point]) -> str:
    """The same without charts."""
    return markdown(_of_one(view, points, charts=False))


def comparison_html(comparison: Comparison) -> str:
    """Benchmarks beside each other, with what differs between them first."""
    return html(_of_several(comparison, charts=True))


def comparison_markdown(comparison: Comparison) -> str:
    return markdown(_of_several(comparison, charts=False))


def engines_html(subjects: Sequence[Subject], bars: Sequence[EngineBar]) -> str:
    """One workload on several engines, and under what conditions each was measured."""
    return html(_of_engines(subjects, bars, charts=True))


def engines_markdown(subjects: Sequence[Subject], bars: Sequence[EngineBar]) -> str:
    return markdown(_of_engines(subjects, bars, charts=False))


def in_words(value: float, metric: Metric, *, signed: bool = False) -> str:
    """A figure in its unit: 1,390 tokens/s, 41.2 ms, +3.1 ms."""
    sign = "+" if signed and value > 0 else ""
    unit = "%" if metric.unit == "%" else f" {metric.unit}"
    return f"{sign}{number(value)}{unit}".replace("-", "−")


def interval_in_words(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """ "1,310 to 1,470"; "" where there is none."""
    if low is None or high is None:
        return ""
    texts = (f"{'+' if signed and end > 0 else ''}{number(end)}".replace("-", "−") for end in (low, high))
    return " to ".join(texts)


def spread_in_words(figure: Figure) -> str:
    """ "1,310 to 1,470, n=3 repeats"; of one repeat what its requests show."""
    interval = interval_in_words(figure.low, figure.high)
    noun = figure.of if figure.n != 1 else figure.of[:-1]
    counted = f"n={figure.n:,} {noun}"
    return f"{interval}, {counted}" if interval else counted


def share_in_words(share: float | None) -> str:
    """ "+12%", "−3.4%"; "" where there is nothing to divide by."""
    if share is None:
        return ""
    return f"{share:+.1%}".replace("-", "−") if abs(share) < 0.1 else f"{share:+.0%}".replace("-", "−")


# -- one ---------------------------------------------------------------------------


def _of_one(view: BenchView, points: Sequence[Point], *, charts: bool) -> Report:
    groups = measured(points)
    sections = [_conditions_section((view,), ("Value",), only_different=False)]
    sections += [_figures_section(load, repeats, charts) for load, repeats in groups.items()]
    if charts and (chart := _sweep_chart(view, groups)):
        sections.insert(1, Section(title="Latency against throughput", charts=[chart]))
    errors = Counter(record.error for point in points for record in point.records if record.error)
    if errors:
        rows = [[Cell(text), Cell(f"{many:,}")] for text, many in errors.most_common(_ERRORS_SHOWN)]
        sections.append(Section(title="Failed requests", heads=("Why", "Requests"), rows=rows))
    if view.spec is not None:
        said = json.dumps(view.spec.model_dump(mode="json"), ensure_ascii=False, indent=2)
        sections.append(Section(title="Specification", about="What repeats this benchmark.", text=said))
    return Report(
        title=view.name or view.benchmark_id,
        about=_about(view),
        warnings=_warnings(view, points),
        sections=sections,
    )


def _about(view: BenchView) -> str:
    when = view.created_at.strftime("%d %B %Y, %H:%M UTC")
    parts = [f"{_TITLES.get(view.kind, view.kind)} benchmark, {when}"]
    parts += [
        str(view.environment[name])
        for name in ("model", "engine", "engine_version")
        if view.environment.get(name)
    ]
    if view.source:
        parts.append(f"read from {view.source}")
    return ", ".join(parts) + "."


def _warnings(view: BenchView, points: Sequence[Point]) -> list[str]:
    found = []
    if view.state in ("failed", "stopped", "interrupted"):
        found.append(f"This benchmark is {view.state}: {view.message or 'what was done before is here'}")
    if any(not point.is_whole for point in points):
        found.append("Points that were stopped before their last request are left out.")
    failed = sum(int(point.result.get("failed") or 0) for point in points)
    if failed:
        found.append(f"{failed:,} requests failed: they count as failed, and in no latency.")
    return found


def _figures_section(load: Load | None, repeats: Sequence[Point], charts: bool) -> Section:
    rows = []
    for name, found in figures.table(figures.names(repeats), repeats).items():
        metric = figures.metric(name)
        if metric is not None:
            each = ", ".join(number(value) for value in found.values) if len(found.values) > 1 else ""
            rows.append(
                [
                    Cell(metric.title, metric.help),
                    Cell(in_words(found.value, metric), style="figure"),
                    Cell(spread_in_words(found), style="figure"),
                    Cell(each),
                ]
            )
    return Section(
        title=_title(load),
        about="Rates are sums by sums, percentiles of all requests together. Of one repeat, the 95% interval "
        "says how its requests vary, not how another run would come out.",
        heads=("Figure", "Value", "95% interval", "Each repeat"),
        rows=rows,
        charts=_point_charts(repeats) if charts else (),
    )


def _point_charts(repeats: Sequence[Point]) -> list[tuple[str, Markup]]:
    found = []
    rates = [(point.repeat, metrics.per_second(point.records)) for point in repeats]
    series = [
        Series(f"repeat {repeat + 1}", range(len(values)), values)
        for repeat, values in rates[:4]
        if len(values) > 1
    ]
    if series:
        found.append(("Output tokens/s over time", lines(series, "Seconds", "Output tokens/s")))
    for name, title in _LATENCIES.items():
        values = [value for point in repeats for value in metrics.milliseconds(point.records, name)]
        if len(values) > 1:
            noun = "Gaps between tokens" if name == "itl" else "Requests"
            found.append((title, histogram(values, f"{name.upper()} in ms", noun)))
    return found


def _sweep_chart(view: BenchView, groups: dict[Load | None, tuple[Point, ...]]) -> tuple[str, Markup] | None:
    """Median latency over throughput, a place for each load, where there are three or more of them."""
    places = []
    for load, repeats in groups.items():
        rate = figures.figure("output_throughput", repeats)
        latency = figures.figure("median_e2el_ms", repeats)
        if load is not None and rate is not None and latency is not None:
            places.append((load, rate.value, latency.value))
    if len(places) < 3:
        return None
    titles = [load.title for load, _rate, _latency in places]
    if view.spec is not None and view.spec.sweep is not None:
        sweep = view.spec.sweep
        at = knee.load_points(view.points, sweep.over)
        index = knee.knee(at, sweep.least_gain)
        for place, (load, _rate, _latency) in enumerate(places):
            if index is not None and knee.load_of(load, sweep.over) == at[index].load:
                titles[place] += " (knee)"
    series = Series("", [rate for _load, rate, _ in places], [latency for *_, latency in places], titles)
    return "Each place is one load", lines([series], "Output tokens/s", "Median E2EL in ms", marks=True)


# -- several -----------------------------------------------------------------------


def _of_several(comparison: Comparison, *, charts: bool) -> Report:
    names, base = comparison.names, comparison.names[comparison.baseline]
    sections = [_condition_rows(comparison.conditions, names, only_different=True)]
    if comparison.regressions:
        sections.insert(0, _regressions_section(comparison))
    for at in comparison.loads:
        rows = [
            [Cell(line.metric.title, line.metric.help)]
            + [_figure_cell(line.metric, *pair) for pair in zip(line.figures, line.differences, strict=True)]
            for line in at.lines
        ]
        heads = ["Figure"] + [
            f"{name} (n={repeats})" for name, repeats in zip(names, at.repeats, strict=True)
        ]
        shown = [
            line
            for line in at.lines
            if line.metric.name in ("output_throughput", "p99_ttft_ms", "avg_latency")
        ]
        drawn = [(line.metric.title, _bars(line.figures, names, line.metric)) for line in shown]
        sections.append(
            Section(
                title=_title(at.load),
                about=f"Differences are to {base}, with 95% intervals over repeats.",
                heads=heads,
                rows=rows,
                charts=drawn if charts else (),
            )
        )
    about = f"{len(names)} benchmarks, baseline {base}. Of twenty figures that are alike, about one shows a "
    return Report(
        title=" against ".join(names) if len(names) == 2 else f"{len(names)} benchmarks side by side",
        about=about + "difference by chance.",
        warnings=comparison.warnings,
        sections=sections,
    )


def _regressions_section(comparison: Comparison) -> Section:
    rows = []
    for at, line, place in comparison.regressions:
        found = line.differences[place]
        if found is not None:
            rows.append(
                [
                    Cell(comparison.names[place]),
                    Cell(line.metric.title, at.title),
                    Cell(share_in_words(found.share), style="figure worse"),
                ]
            )
    about = f"Worse than the baseline beyond the interval, and by {comparison.threshold:.0%} or more."
    return Section(title="Regressions", about=about, heads=("Benchmark", "Figure", "Difference"), rows=rows)


def _figure_cell(metric: Metric, figure: Figure | None, difference: Difference | None) -> Cell:
    if figure is None:
        return Cell("–", style="none")
    more = [spread_in_words(figure)]
    style = "figure"
    if difference is not None:
        share = share_in_words(difference.share) or in_words(difference.value, metric, signed=True)
        more.append(f"{share}, {difference.verdict}")
        if difference.verdict not in (NO_DIFFERENCE, ONE_REPEAT):
            style += f" {difference.verdict}"
    return Cell(in_words(figure.value, metric), "; ".join(more), style)


def _of_engines(subjects: Sequence[Subject], found: Sequence[EngineBar], *, charts: bool) -> Report:
    metric = figures.RATES["output_throughput"]
    sections = []
    for load in dict.fromkeys(bar.load for bar in found):
        own = [bar for bar in found if bar.load == load]
        least = min(bar.figure.value for bar in own)
        rows = [
            [
                Cell(bar.title),
                Cell(in_words(bar.figure.value, metric), spread_in_words(bar.figure), "figure"),
                Cell(f"{bar.figure.value / least:.1f} times" if least else "–", style="figure"),
            ]
            for bar in own
        ]
        items = [Bar(bar.title, bar.figure.value, bar.figure.low, bar.figure.high) for bar in own]
        drawn = [(metric.title, bars(items, f"{metric.title} (line: 95% interval over repeats)"))]
        sections.append(
            Section(
                title=_title(load),
                heads=("Engine", "Output tokens/s", "Of the slowest"),
                rows=rows,
                charts=drawn if charts else (),
            )
        )
    views = [subject.view for subject in subjects]
    names = [view.name for view in views]
    sections.append(_conditions_section(views, names, only_different=False))
    return Report(
        title="Engines in one picture",
        about="The same model and prompts of the same lengths on each engine, one after the other.",
        sections=sections,
    )


def _title(load: Load | None) -> str:
    return f"{load.title[:1].upper()}{load.title[1:]}" if load else "Figures"


def _bars(found: Sequence[Figure | None], names: Sequence[str], metric: Metric) -> Markup:
    items = [
        Bar(name, one.value, one.low, one.high)
        for name, one in zip(names, found, strict=True)
        if one is not None
    ]
    return bars(items[:_BARS_SHOWN], f"{metric.title}, {metric.unit} (line: 95% interval)")


def _conditions_section(views: Sequence[BenchView], names: Sequence[str], *, only_different: bool) -> Section:
    return _condition_rows(conditions(views), names, only_different=only_different)


def _condition_rows(found: Sequence, names: Sequence[str], *, only_different: bool) -> Section:
    rows = [
        [Cell(one.name, one.group), *(Cell("–" if value is None else value) for value in one.values)]
        for one in found
        if one.differs or not only_different
    ]
    title = "What differs between them" if only_different else "Conditions"
    about = "Nothing that is known." if only_different and not rows else ""
    return Section(title=title, about=about, heads=("", *names), rows=rows)
