"""`python -m core bench`: measure the engine on the command line, with the option names of `vllm bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from core import sampling
from core.bench.records import BenchView
from core.bench.spec import BenchSpec
from core.bench.words import summary_words
from core.cli import bench_asked as asked_for
from core.cli import engine as cli_engine
from core.cli.bench_work import Session, knee_line, table
from core.cli.engine import EngineArgOption, EngineOption, ModelOption
from core.cli.session import say
from core.errors import ParameterError
from core.settings import load_settings

app = typer.Typer(
    help="Measure how fast the engine is: vLLM's benchmarks, and what came out of them.", no_args_is_help=True
)

DatasetOption = Annotated[
    str, typer.Option("--dataset-name", help=f"Where prompts come from: {', '.join(asked_for.DATASETS)}.")
]
PathOption = Annotated[
    Path | None, typer.Option("--dataset-path", help="The file of the datasets table and sharegpt.")
]
TemplateOption = Annotated[
    str | None, typer.Option(help="The prompt over a table's columns, such as 'Is it good? {{ text }}'.")
]
SystemOption = Annotated[
    str, typer.Option(help="A table's system prompt; may use columns too.", show_default=False)
]
NumPromptsOption = Annotated[int | None, typer.Option(min=1, help="Requests of each point. Default: 200.")]
InputLenOption = Annotated[
    int | None,
    typer.Option("--input-len", "--random-input-len", min=1, help="Tokens of a random prompt. Default: 256."),
]
OutputLenOption = Annotated[
    int | None,
    typer.Option(
        "--output-len",
        "--random-output-len",
        "--sharegpt-output-len",
        "--prefix-repetition-output-len",
        min=1,
        help="Tokens of every answer. Default: 64; as in the file; of a table where the model ends it.",
    ),
]
RangeRatioOption = Annotated[
    float | None,
    typer.Option(
        "--range-ratio",
        "--random-range-ratio",
        min=0,
        max=0.999,
        help="Random lengths lie this share around the given.",
    ),
]
PrefixLenOption = Annotated[
    int | None,
    typer.Option(
        "--prefix-len",
        "--random-prefix-len",
        "--prefix-repetition-prefix-len",
        min=0,
        help="Tokens with which random prompts begin alike.",
    ),
]
SuffixLenOption = Annotated[
    int | None,
    typer.Option(
        "--suffix-len", "--prefix-repetition-suffix-len", min=1, help="Tokens after a shared prefix."
    ),
]
PrefixesOption = Annotated[
    int | None,
    typer.Option("--num-prefixes", "--prefix-repetition-num-prefixes", min=1, help="Different prefixes."),
]
WarmupsOption = Annotated[
    int, typer.Option("--num-warmups", min=0, help="Requests before each point that count nowhere.")
]
RepeatsOption = Annotated[
    int, typer.Option(min=1, max=100, help="Measure every point so often, with other seeds.")
]
SeedOption = Annotated[int, typer.Option(help="What random prompts and arrivals are drawn with.")]
ParamOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A sampling parameter; repeatable. Default: temperature=1."),
]
IgnoreEosOption = Annotated[
    bool, typer.Option(help="Go on past the model's end, so that answers have exactly their length.")
]
NameOption = Annotated[str, typer.Option(help="A name to find it by.", show_default=False)]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", "--output-json",
                 help="Write the result as `vllm bench` does; several points: one JSON a line."),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON line.")]


@app.command(short_help="All requests at once: the most tokens a second.")
def throughput(
    dataset_name: DatasetOption = "random",
    dataset_path: PathOption = None,
    template: TemplateOption = None,
    system: SystemOption = "",
    num_prompts: NumPromptsOption = None,
    input_len: InputLenOption = None,
    output_len: OutputLenOption = None,
    range_ratio: RangeRatioOption = None,
    prefix_len: PrefixLenOption = None,
    suffix_len: SuffixLenOption = None,
    num_prefixes: PrefixesOption = None,
    num_warmups: WarmupsOption = 8,
    repeats: RepeatsOption = 1,
    seed: SeedOption = 0,
    param: ParamOption = None,
    ignore_eos: IgnoreEosOption = True,
    name: NameOption = "",
    output: OutputOption = None,
    as_json: JsonOption = False,
    model: ModelOption = None,
    engine: EngineOption = None,
    engine_arg: EngineArgOption = None,
) -> None:
    """All requests at once: the most tokens a second that come out of it."""
    lengths = _lengths(num_prompts, input_len, output_len, range_ratio, prefix_len, suffix_len, num_prefixes)
    spec = asked_for.spec(
        kind="throughput",
        name=name,
        workload=asked_for.workload(
            dataset_name, dataset_path, template=template, system=system, asked=lengths
        ),
        num_warmups=num_warmups,
        repeats=repeats,
        seed=seed,
        params=_params(param),
        ignore_eos=ignore_eos,
    )
    _measure(spec, output, as_json, cli_engine.asked(engine, model, engine_arg))


# vLLM takes several words after --goodput: those behind the first arrive as surplus arguments
@app.command(
    short_help="Requests as they arrive: latencies at each load.",
    context_settings={"allow_extra_args": True},
)
def serve(
    context: typer.Context,
    dataset_name: DatasetOption = "random",
    dataset_path: PathOption = None,
    template: TemplateOption = None,
    system: SystemOption = "",
    num_prompts: NumPromptsOption = None,
    input_len: InputLenOption = None,
    output_len: OutputLenOption = None,
    range_ratio: RangeRatioOption = None,
    prefix_len: PrefixLenOption = None,
    suffix_len: SuffixLenOption = None,
    num_prefixes: PrefixesOption = None,
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
    repeats: RepeatsOption = 1,
    seed: SeedOption = 0,
    param: ParamOption = None,
    ignore_eos: IgnoreEosOption = True,
    name: NameOption = "",
    output: OutputOption = None,
    as_json: JsonOption = False,
    model: ModelOption = None,
    engine: EngineOption = None,
    engine_arg: EngineArgOption = None,
) -> None:
    """Requests as they arrive at a server: latencies and tokens/s at one load after the other."""
    if context.args and not goodput:
        raise typer.BadParameter(f"got an argument too many: {context.args[0]}")
    lengths = _lengths(num_prompts, input_len, output_len, range_ratio, prefix_len, suffix_len, num_prefixes)
    spec = asked_for.spec(
        kind="serve",
        name=name,
        workload=asked_for.workload(
            dataset_name, dataset_path, template=template, system=system, asked=lengths
        ),
        loads=asked_for.loads(request_rate, max_concurrency, burstiness, arrivals),
        sweep=asked_for.sweep(sweep, sweep_start, sweep_factor, sweep_gain, sweep_points),
        goodput=asked_for.goodput([*(goodput or ()), *context.args]),
        percentile_metrics=asked_for.metric_names(percentile_metrics),
        metric_percentiles=asked_for.percentiles(metric_percentiles),
        num_warmups=num_warmups,
        repeats=repeats,
        seed=seed,
        params=_params(param),
        ignore_eos=ignore_eos,
    )
    _measure(spec, output, as_json, cli_engine.asked(engine, model, engine_arg))


@app.command(short_help="How long one batch of equal prompts takes.")
def latency(
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests of a batch.")] = 8,
    num_iters_warmup: Annotated[int, typer.Option(min=0, help="Batches that count nowhere.")] = 10,
    num_iters: Annotated[int, typer.Option(min=1, max=1000, help="Batches that are timed.")] = 30,
    repeats: RepeatsOption = 1,
    seed: SeedOption = 0,
    param: ParamOption = None,
    ignore_eos: IgnoreEosOption = True,
    name: NameOption = "",
    output: OutputOption = None,
    as_json: JsonOption = False,
    model: ModelOption = None,
    engine: EngineOption = None,
    engine_arg: EngineArgOption = None,
) -> None:
    """One batch of equal prompts after the other: how long it takes."""
    lengths = _lengths(None, input_len, output_len, None, None, None, None)
    spec = asked_for.spec(
        kind="latency",
        name=name,
        workload=asked_for.workload("random", None, template=None, system="", asked=lengths),
        batch_size=batch_size,
        num_iters=num_iters,
        num_iters_warmup=num_iters_warmup,
        repeats=repeats,
        seed=seed,
        params=_params(param),
        ignore_eos=ignore_eos,
    )
    _measure(spec, output, as_json, cli_engine.asked(engine, model, engine_arg))


@app.command(short_help="Do a benchmark again, from its file.")
def run(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A specification, or a result that has one: ours have.")
    ],
    name: NameOption = "",
    output: OutputOption = None,
    as_json: JsonOption = False,
    model: ModelOption = None,
    engine: EngineOption = None,
    engine_arg: EngineArgOption = None,
) -> None:
    """Do what a specification asks, or what was asked for a result, on the engine that is named here."""
    spec = asked_for.read(file)
    spec = spec.model_copy(update={"name": name}) if name else spec
    _measure(spec, output, as_json, cli_engine.asked(engine, model, engine_arg))


@app.command("list")
def list_benchmarks(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
) -> None:
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
def show(
    benchmark_id: Annotated[str, typer.Argument(metavar="ID", help="As `bench list` shows it.")],
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the figures of a benchmark, and write its points to a file."""
    with Session(load_settings()) as session:
        view = session.benchmarks.view(benchmark_id)
        if output is not None:
            session.write(view, _checked(output))
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


def _measure(spec: BenchSpec, output: Path | None, as_json: bool, asked: cli_engine.EngineAsked) -> None:
    """Load, measure, print and write; a benchmark that was stopped ends the command with 130."""
    _checked(output)
    with Session(load_settings()) as session:
        session.load(asked)
        view = session.measure(spec, quiet=as_json)
        if output is not None:
            session.write(view, output)
        if line := knee_line(view):
            say(line)
        if as_json:
            print(json.dumps(_figures(view), ensure_ascii=False), flush=True)
    if view.state == "stopped":
        raise SystemExit(130)


def _checked(output: Path | None) -> Path | None:
    if output is not None and not output.absolute().parent.is_dir():
        raise ParameterError(f"The folder {output.absolute().parent} does not exist.", hint="Make it.")
    return output


def _params(said: list[str] | None) -> dict[str, Any]:
    return {"temperature": 1.0, **sampling.parse_assignments(said or [])}


def _lengths(*values: Any) -> dict[str, Any]:
    names = ("num_prompts", "input_len", "output_len", "range_ratio", "prefix_len", "suffix_len",
             "num_prefixes")  # fmt: skip
    return dict(zip(names, values, strict=True))


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
