"""`python -m core bench`: measure the engine on the command line, with the option names of `vllm bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from core.bench.records import BenchView
from core.bench.spec import BenchSpec
from core.bench.words import summary_words
from core.cli import bench_asked as asked_for
from core.cli.bench_options import (
    IdArgument,
    OutputOption,
    PointOptions,
    ResultOptions,
    WarmupsOption,
    WorkloadOptions,
)
from core.cli.bench_work import Session, knee_line, table
from core.cli.engine import EngineAsked, EngineOptions
from core.cli.options import JsonLinesOption, JsonOption, NewestOption, check_folder, grouped
from core.cli.session import say
from core.settings import load_settings

app = typer.Typer(
    help="Measure how fast the engine is: vLLM's benchmarks, and what came out of them.", no_args_is_help=True
)


@app.command(short_help="All requests at once: the most tokens a second.")
@grouped
def throughput(
    *,
    prompts: WorkloadOptions,
    num_warmups: WarmupsOption = 8,
    points: PointOptions,
    result: ResultOptions,
    loaded: EngineOptions,
) -> None:
    """All requests at once: the most tokens a second that come out of it."""
    spec = asked_for.spec(
        kind="throughput",
        name=result.name,
        workload=asked_for.workload(prompts),
        num_warmups=num_warmups,
        **asked_for.point_fields(points),
    )
    _measure(spec, result, loaded.asked())


# vLLM takes several words after --goodput: those behind the first arrive as surplus arguments
@app.command(
    short_help="Requests as they arrive: latencies at each load.",
    context_settings={"allow_extra_args": True},
)
@grouped
def serve(
    context: typer.Context,
    *,
    prompts: WorkloadOptions,
    request_rate: Annotated[
        str, typer.Option(metavar="RATE[,RATE]", help="Requests/s; inf: all at once. A list: a point each.")
    ] = "inf",
    max_concurrency: Annotated[
        str | None, typer.Option(metavar="N[,N]", help="Requests in flight at most. A list: a point each.")
    ] = None,
    burstiness: Annotated[
        float, typer.Option(min=0.001, help="1: Poisson arrivals; less: in bursts; more: evenly.")
    ] = 1.0,
    arrivals: Annotated[
        str | None, typer.Option(help="poisson, constant or gamma. Default: what --burstiness says.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT", help="More and more load until the knee: request_rate or max_concurrency."
        ),
    ] = None,
    sweep_start: Annotated[float, typer.Option(min=0.001, help="A sweep's first load.")] = 1.0,
    sweep_factor: Annotated[float, typer.Option(min=1.01, help="Each load is so many times the last.")] = 2.0,
    sweep_gain: Annotated[
        float,
        typer.Option(min=0, max=0.99, help="It ends where output tokens/s grow by less than this share."),
    ] = 0.05,
    sweep_points: Annotated[int, typer.Option(min=2, max=64, help="The most loads of a sweep.")] = 10,
    goodput: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:MS ...", help="What a good request may take: ttft:500 tpot:50 e2el:9000."),
    ] = None,
    percentile_metrics: Annotated[
        str, typer.Option(help="Metrics to give percentiles of.")
    ] = "ttft,tpot,itl,e2el",
    metric_percentiles: Annotated[str, typer.Option(help="Which percentiles.")] = "50,90,95,99",
    num_warmups: WarmupsOption = 8,
    points: PointOptions,
    result: ResultOptions,
    loaded: EngineOptions,
) -> None:
    """Requests as they arrive at a server: latencies and tokens/s at one load after the other."""
    if context.args and not goodput:
        raise typer.BadParameter(f"got an argument too many: {context.args[0]}")
    spec = asked_for.spec(
        kind="serve",
        name=result.name,
        workload=asked_for.workload(prompts),
        loads=asked_for.loads(request_rate, max_concurrency, burstiness, arrivals),
        sweep=asked_for.sweep(sweep, sweep_start, sweep_factor, sweep_gain, sweep_points),
        goodput=asked_for.goodput([*(goodput or ()), *context.args]),
        percentile_metrics=asked_for.metric_names(percentile_metrics),
        metric_percentiles=asked_for.percentiles(metric_percentiles),
        num_warmups=num_warmups,
        **asked_for.point_fields(points),
    )
    _measure(spec, result, loaded.asked())


@app.command(short_help="How long one batch of equal prompts takes.")
@grouped
def latency(
    *,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests of a batch.")] = 8,
    num_iters_warmup: Annotated[int, typer.Option(min=0, help="Batches that count nowhere.")] = 10,
    num_iters: Annotated[int, typer.Option(min=1, max=1000, help="Batches that are timed.")] = 30,
    points: PointOptions,
    result: ResultOptions,
    loaded: EngineOptions,
) -> None:
    """One batch of equal prompts after the other: how long it takes."""
    spec = asked_for.spec(
        kind="latency",
        name=result.name,
        workload=asked_for.workload(WorkloadOptions(input_len=input_len, output_len=output_len)),
        batch_size=batch_size,
        num_iters=num_iters,
        num_iters_warmup=num_iters_warmup,
        **asked_for.point_fields(points),
    )
    _measure(spec, result, loaded.asked())


@app.command(short_help="Do a benchmark again, from its file.")
@grouped
def run(
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A specification, or a result that has one: ours have.")
    ],
    result: ResultOptions,
    loaded: EngineOptions,
) -> None:
    """Do what a specification asks, or what was asked for a result, on the engine that is named here."""
    spec = asked_for.read(file)
    spec = spec.model_copy(update={"name": result.name}) if result.name else spec
    _measure(spec, result, loaded.asked())


@app.command("list")
def list_benchmarks(as_json: JsonLinesOption = False, limit: NewestOption = 20) -> None:
    """List benchmarks: id, state, figures, name."""
    with Session(load_settings()) as session:
        for view in session.benchmarks.recent(limit):
            if as_json:
                print(json.dumps(_figures(view), ensure_ascii=False))
                continue
            last = summary_words(view.kind, view.points[-1].result) if view.points else "nothing measured"
            points = f"{len(view.points)} points, the last: " if len(view.points) > 1 else ""
            print(f"{view.benchmark_id}  {view.state:<11}  {view.kind:<10}  {view.name}: {points}{last}")


@app.command(short_help="Print a benchmark's figures, or write its file.")
def show(benchmark_id: IdArgument, output: OutputOption = None, as_json: JsonOption = False) -> None:
    """Print the figures of a benchmark, and write its points to a file."""
    with Session(load_settings()) as session:
        view = session.benchmarks.view(benchmark_id)
        if output is not None:
            check_folder(output)
            session.write(view, output)
        if as_json:
            print(json.dumps(_figures(view), ensure_ascii=False))
            return
        conditions = view.environment
        print(f"{view.name}: {view.state}{f', {view.message}' if view.message else ''}")
        print(f"{conditions.get('model')}, {conditions.get('engine')} {conditions.get('engine_version', '')}")
        for point in view.points:
            print("\n".join(table(view, point)))
        if line := knee_line(view):
            print(line)


def _measure(spec: BenchSpec, result: ResultOptions, asked: EngineAsked) -> None:
    """Load, measure, print and write; a benchmark that was stopped ends the command with 130."""
    check_folder(result.output)
    with Session(load_settings()) as session:
        session.load(asked)
        view = session.measure(spec, quiet=result.as_json)
        if result.output is not None:
            session.write(view, result.output)
        if line := knee_line(view):
            say(line)
        if result.as_json:
            print(json.dumps(_figures(view), ensure_ascii=False), flush=True)
    if view.state == "stopped":
        raise SystemExit(130)


def _figures(view: BenchView) -> dict[str, Any]:
    return {
        "benchmark_id": view.benchmark_id,
        "name": view.name,
        "kind": view.kind,
        "state": view.state,
        "message": view.message,
        "model": view.environment.get("model"),
        "points": [
            {
                "load": point.load.model_dump() if point.load else None,
                "repeat": point.repeat,
                "is_whole": point.is_whole,
                "result": dict(point.result),
            }
            for point in view.points
        ],
    }
