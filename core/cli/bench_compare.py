"""`python -m core bench compare|history|report|import|engines`: what benchmarks say beside each other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from core.bench import differences, engines, figures, history, report, subjects
from core.bench.differences import Comparison, Subject
from core.bench.runner import Benchmarks
from core.cli.bench_options import IdArgument
from core.cli.bench_work import Session
from core.cli.options import JsonLinesOption, JsonOption, check_folder
from core.cli.session import say
from core.errors import BenchError, ParameterError
from core.models.library import Library
from core.settings import load_settings

_READ = 1000
_HEADS = ("Figure", "Value", "95% interval", "Against the baseline")


def add_to(app: typer.Typer) -> None:
    """Put these commands beside those that measure."""
    app.command(short_help="Hold benchmarks, or files of vLLM's, against each other.")(compare)
    app.command("history", short_help="A figure of the same workload over time and versions.")(show_history)
    app.command("report", short_help="Write a benchmark as one page that opens anywhere.")(write_report)
    app.command("import", short_help="Keep results that vLLM itself measured.")(import_files)
    app.command("engines", short_help="One workload on transformers, llama.cpp and vLLM.")(compare_engines)


def compare(
    them: Annotated[
        list[str],
        typer.Argument(metavar="ID|FILE...", help="Benchmarks, or files of `vllm bench`; two or more."),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="ID|FILE", help="The one to hold others against. Default: the first."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=100, help="Percent from which worse is a regression.")
    ] = 100 * differences.THRESHOLD,
    all_figures: Annotated[bool, typer.Option("--all", help="All figures, not the main ones.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write it: .html, .md or .json.")
    ] = None,
    fail: Annotated[
        bool, typer.Option("--fail", help="End with exit code 3 when something is a regression.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold benchmarks against each other: what differs between them, and what that did.

    A difference is called so when it is beyond the spread of the repeats.
    """
    _check(output, (".html", ".md", ".json"))
    if baseline is not None and baseline not in them:
        raise ParameterError(
            f"The baseline {baseline} is none of those compared.", hint="Name it among them."
        )
    with Session(load_settings()) as session:
        found = [_subject(session.benchmarks, one) for one in them]
    place = 0 if baseline is None else them.index(baseline)
    comparison = differences.compare(found, place, threshold / 100)
    if output is not None:
        write = {".html": report.comparison_html, ".md": report.comparison_markdown, ".json": _as_json}
        output.write_text(write[output.suffix.lower()](comparison), encoding="utf-8")
        say(f"written to {output}")
    if as_json:
        print(json.dumps(_data(comparison), ensure_ascii=False))
    else:
        _print(comparison, all_figures)
    if fail and comparison.regressions:
        raise SystemExit(3)


def show_history(
    benchmark_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Whose workload. Default: the newest benchmark's.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="A field such as p99_ttft_ms. Default: output tokens/s, or the mean latency."),
    ] = None,
    as_json: JsonLinesOption = False,
) -> None:
    """A figure of all benchmarks that ask the same, oldest first, and what changed between them."""
    with Session(load_settings()) as session:
        views = [view for view in session.benchmarks.recent(_READ) if view.points]
        if benchmark_id is not None:
            like = session.benchmarks.view(benchmark_id)
        elif own := [view for view in views if view.spec is not None]:
            like = own[0]
        else:
            raise BenchError(
                "There is no benchmark yet.", hint="Measure one: python -m core bench throughput."
            )
    alike = history.alike(views, like)
    for load in history.loads(alike):
        names = history.metric_names(alike, load)
        name = metric or ("avg_latency" if like.kind == "latency" else "output_throughput")
        chosen = figures.metric(name)
        if chosen is None or name not in names:
            raise ParameterError(f"{name} was not measured.", hint=f"There are: {', '.join(names)}.")
        if not as_json:
            print(f"{chosen.title} ({chosen.unit}){f', {load.title}' if load else ''}")
        for place in history.history(alike, load, name):
            if as_json:
                known = dataclasses.asdict(place) | {"created_at": place.created_at.isoformat()}
                print(json.dumps({"load": load.title if load else None, "metric": name, **known}))
                continue
            values = ", ".join(report.number(value) for value in place.values)
            print(f"{place.benchmark_id}  {values:>20}  {place.series}  {place.name}")
            for change in place.changes:
                print(f"{'':22}{change}")


def write_report(
    benchmark_id: IdArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write: .html (a page) or .md (to paste).")
    ],
) -> None:
    """Write a benchmark with its conditions, figures and charts."""
    _check(output, (".html", ".md"))
    with Session(load_settings()) as session:
        found = subjects.kept(session.benchmarks, benchmark_id)
    write = report.to_html if output.suffix.lower() == ".html" else report.to_markdown
    output.write_text(write(found.view, found.points), encoding="utf-8")
    say(f"written to {output}")


def import_files(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Results of `vllm bench`.")],
) -> None:
    """Keep results of `vllm bench serve`, `throughput` or `latency` beside one's own."""
    with Session(load_settings()) as session:
        for path in paths:
            subjects.of_file(path)  # says what is wrong, before it is kept
            benchmark_id = session.benchmarks.import_file(path.name, path.read_bytes())
            print(f"{benchmark_id}  {path.name}")


def compare_engines(
    model: Annotated[
        str, typer.Option(help="The model's name in the library, a folder or a hub's id.")
    ] = "embedded",
    gguf: Annotated[
        str | None,
        typer.Option(help="The same model for llama.cpp. Default: a GGUF of the library with its name."),
    ] = None,
    only: Annotated[str, typer.Option("--engines", metavar="NAME,NAME", help="Which engines.")] = ",".join(
        engines.COMPARED
    ),
    at_once: Annotated[int, typer.Option(min=2, help="Requests at once, beside one alone.")] = 32,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Measure each so often.")] = 3,
    seed: Annotated[int, typer.Option(help="What prompts are drawn with.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the picture: .html or .md.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """One workload on several engines in turn, each with one request alone and with many at once.

    Engines that can't run here are named with their reason. Ctrl-C keeps what is measured.
    """
    _check(output, (".html", ".md"))
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in engines.COMPARED]:
        hint = f"There are: {', '.join(engines.COMPARED)}."
        raise ParameterError(f"{unknown[0]!r} is no engine to compare.", hint=hint)
    with Session(load_settings()) as session:
        library = Library(session.runtime.settings, session.store)
        at_work = engines.Engines(session.benchmarks, session.runtime, session.saved)
        file = gguf or engines.gguf_of(model, library)
        contenders = [one for one in at_work.contenders(model, file) if one.engine in wanted]
        for one in contenders:
            if one.obstacle:
                say(f"{one.title} is left out: {one.obstacle}")
        asked = engines.specs(
            at_once=at_once, input_len=input_len, output_len=output_len, repeats=repeats, seed=seed
        )
        group = at_work.start(asked, contenders)
        was_stopped = _follow(at_work)
        members = engines.groups(session.benchmarks.recent(_READ)).get(group, ())
        found = [subjects.kept(session.benchmarks, view.benchmark_id) for view in members]
    bars = engines.picture(found)
    if output is not None and found:
        write = report.engines_html if output.suffix.lower() == ".html" else report.engines_markdown
        output.write_text(write(found, bars), encoding="utf-8")
        say(f"written to {output}")
    if as_json:
        print(json.dumps([_bar(bar) for bar in bars]))
    else:
        print("\n".join(_picture(bars)))
    if was_stopped:
        raise SystemExit(130)


# -- the inside -------------------------------------------------------------------


def _check(output: Path | None, endings: Sequence[str]) -> None:
    if output is None:
        return
    if output.suffix.lower() not in endings:
        raise ParameterError(f"{output.name} must end in one of {', '.join(endings)}.", hint="Rename it.")
    check_folder(output)


def _subject(benchmarks: Benchmarks, name: str) -> Subject:
    path = Path(name)
    if path.suffix.lower() in (".json", ".jsonl") or path.is_file():
        return subjects.of_file(path)
    return subjects.kept(benchmarks, name)


def _follow(at_work: engines.Engines) -> bool:
    """Say how far each engine is until all are done; True when it was stopped by Ctrl-C."""
    said: dict[str, str] = {}
    was_stopped = False
    while True:
        try:
            now = at_work.wait(0.3)
            for entry in now.entries if now else ():
                line = f"{entry.title}: {entry.state}{f': {entry.message}' if entry.message else ''}"
                if said.get(entry.engine) != line and entry.state != "waiting":
                    said[entry.engine] = line
                    say(line)
            if now is None or not now.is_live:
                if now is not None and now.message:
                    say(now.message)
                return was_stopped
        except KeyboardInterrupt:
            was_stopped = True
            at_work.stop()
            say("stopping; what is measured is kept")


def _print(comparison: Comparison, all_figures: bool) -> None:
    for text in comparison.warnings:
        print(f"note: {text}")
    rows = [
        (one.name, *(value or "-" for value in one.values)) for one in comparison.conditions if one.differs
    ]
    if rows:
        print("\n".join(_columns([("What differs", *comparison.names), *rows])))
    else:
        print("Nothing that is known differs between them.")
    for at in comparison.loads:
        print(f"\n{at.title or 'All requests'}")
        for place, name in enumerate(comparison.names):
            print(f"{name}{', the baseline' if place == comparison.baseline else ''}")
            lines = [line for line in at.lines if line.metric.is_main or all_figures]
            print("\n".join(_columns([_HEADS, *_lines(lines, place)], indent=2)))
    for at, line, place in comparison.regressions:
        found = line.differences[place]
        share = report.share_in_words(found.share) if found else ""
        print(f"regression: {comparison.names[place]}, {line.metric.title}{at.where}: {share}")


def _lines(lines: Sequence[differences.Line], place: int) -> Iterable[tuple[str, ...]]:
    for line in lines:
        figure, change = line.figures[place], line.differences[place]
        if figure is None:
            continue
        said = f"{report.share_in_words(change.share)}, {change.verdict}".strip(", ") if change else ""
        value = report.in_words(figure.value, line.metric)
        yield line.metric.title, value, report.spread_in_words(figure), said


def _columns(rows: Sequence[Sequence[str]], indent: int = 0) -> Iterable[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{'':{indent}}{'  '.join(cells)}".rstrip()


def _picture(bars: Sequence[engines.Bar]) -> Iterable[str]:
    metric = figures.RATES["output_throughput"]
    for load in dict.fromkeys(bar.load for bar in bars):
        own = [bar for bar in bars if bar.load == load]
        least = min(bar.figure.value for bar in own)
        yield f"{metric.title}, {load.title if load else 'all requests'}"
        rows = [
            (
                bar.title,
                report.number(bar.figure.value),
                report.spread_in_words(bar.figure),
                f"{bar.figure.value / least:.1f}x" if least else "",
            )
            for bar in own
        ]
        yield from _columns(rows, indent=2)


def _bar(bar: engines.Bar) -> dict[str, Any]:
    found = dataclasses.asdict(bar.figure)
    load = bar.load.model_dump(mode="json") if bar.load else None
    return {"engine": bar.title, "benchmark_id": bar.benchmark_id, "load": load, **found}


def _as_json(comparison: Comparison) -> str:
    return json.dumps(_data(comparison), ensure_ascii=False, indent=2)


def _data(comparison: Comparison) -> Mapping[str, Any]:
    return {
        "benchmarks": dict(zip(comparison.ids, comparison.names, strict=True)),
        "baseline": comparison.ids[comparison.baseline],
        "threshold": comparison.threshold,
        "warnings": comparison.warnings,
        "differs": {one.name: one.values for one in comparison.conditions if one.differs},
        "loads": [
            {
                "load": at.load.model_dump(mode="json") if at.load else None,
                "figures": {
                    line.metric.name: [
                        {
                            "figure": dataclasses.asdict(figure) if figure else None,
                            "difference": dataclasses.asdict(change) if change else None,
                        }
                        for figure, change in zip(line.figures, line.differences, strict=True)
                    ]
                    for line in at.lines
                },
            }
            for at in comparison.loads
        ],
        "regressions": [
            {"benchmark": comparison.ids[place], "metric": line.metric.name, "load": at.title}
            for at, line, place in comparison.regressions
        ],
    }
