"""`python -m core bench tune|limit`: the best settings for a workload; how near a result is to the limit."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Annotated, Any

import typer

from core.bench import device_rates, figures, limits, report, roofline, tuning_search
from core.bench.limits import Unknown
from core.bench.tuning import Tuning
from core.bench.tuning_plan import METRICS, Trial, TuningPlan, TuningView, usable
from core.cli import bench_asked as asked_for
from core.cli.bench_options import IdArgument, RepeatsOption, SeedOption, WarmupsOption, WorkloadOptions
from core.cli.bench_work import Session
from core.cli.engine import EngineOptions
from core.cli.options import JsonOption, grouped
from core.cli.session import say
from core.engines import choice
from core.errors import BenchError
from core.settings import load_settings

_POLL_S = 0.3
_STOP_PATIENCE_S = 60.0


def add_to(app: typer.Typer) -> None:
    """Put these commands beside those that measure."""
    app.command(short_help="Search the best engine settings for a workload.")(tune)
    app.command(short_help="How near a benchmark came to what its device can give.")(limit)


@grouped
def tune(
    *,
    prompts: WorkloadOptions,
    request_rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="Serve at so many requests/s instead of all at once.")
    ] = None,
    max_concurrency: Annotated[
        str | None, typer.Option(metavar="N", help="Serve with at most so many requests in flight.")
    ] = None,
    goodput: Annotated[
        list[str] | None, typer.Option(metavar="NAME:MS", help="What a good request may take: ttft:500.")
    ] = None,
    metric: Annotated[str, typer.Option(help=f"What is to become better: {', '.join(METRICS)}.")] = METRICS[
        0
    ],
    settings: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help=f"What may change, of {', '.join(tuning_search.SETTINGS)}. Default: all that leave answers "
            "as they are.",
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="When the search ends.")] = 10.0,
    use: Annotated[
        bool, typer.Option("--use", help="Keep the best for the model, for its next load.")
    ] = False,
    num_warmups: WarmupsOption = 8,
    repeats: RepeatsOption = 3,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    loaded: EngineOptions,
) -> None:
    """Load the model with one setting changed at a time, measure, and tell what is shown to be better.

    Every trial is kept as a benchmark. Ctrl-C ends the search with what was found.
    """
    serves = request_rate is not None or max_concurrency is not None
    load = {"loads": asked_for.loads(request_rate, max_concurrency, 1.0, None)} if serves else {}
    spec = asked_for.spec(
        kind="serve" if serves else "throughput",
        workload=asked_for.workload(prompts),
        goodput=asked_for.goodput(goodput or ()),
        num_warmups=num_warmups,
        repeats=repeats,
        seed=seed,
        **load,
    )
    names = tuple(part.strip().replace("-", "_") for part in settings.split(",")) if settings else None
    with Session(load_settings()) as session:
        session.load(loaded.asked())
        plan = TuningPlan(
            spec=spec,
            settings=_default_settings(session) if names is None else names,
            minutes=minutes,
            metric=metric,
            keep="before",
        )
        found = _searched(session, plan, use)
    if as_json:
        print(json.dumps(_data(found), ensure_ascii=False))
    elif found.state != "failed":
        print("\n".join(_lines(found)))
    if found.state == "failed":
        raise BenchError(f"The search failed. {found.message}")
    if found.state == "stopped":
        raise SystemExit(130)


@grouped
def limit(
    *,
    benchmark_id: IdArgument,
    measure: Annotated[
        bool,
        typer.Option(help="Measure the device anew first, for about 20 s; the engine's options say which."),
    ] = False,
    as_json: JsonOption = False,
    loaded: EngineOptions,
) -> None:
    """Hold each point against the roofline: what this memory and these processors can give at most."""
    with Session(load_settings()) as session:
        view = session.benchmarks.view(benchmark_id)
        if measure:
            session.load(loaded.asked())
            say("measuring the device")
            device_rates.measure(session.runtime)
        found = limits.limit_of(view.environment, session.runtime.settings, session.runtime.status())
        if isinstance(found, Unknown):
            hint = f"python -m core bench limit {benchmark_id} --measure" if found.device else ""
            raise BenchError(found.reason, hint=hint)
        for summary in view.points:
            reached = limits.reached(session.benchmarks.point(benchmark_id, summary.number), found)
            title = summary.load.title if summary.load else "all requests"
            if as_json:
                known = (
                    {"reason": reached.reason} if isinstance(reached, Unknown) else roofline.as_dict(reached)
                )
                print(json.dumps({"point": summary.number, "load": title, **known}))
            elif isinstance(reached, Unknown):
                print(f"{title}: {reached.reason}")
            else:
                print(
                    f"{title}: {reached.words}: {reached.tokens_per_s:,.0f} of {reached.possible:,.0f} "
                    f"tokens/s at {reached.batch:.1f} requests a step; with prompts {reached.whole_share:.0%}"
                )


def _default_settings(session: Session) -> tuple[str, ...]:
    spec, here = session.runtime.engine.spec, choice.this_machine()
    return tuple(
        name
        for name in tuning_search.SETTINGS
        if name not in tuning_search.CHANGES_ANSWERS and usable(name, spec, here)
    )


def _searched(session: Session, plan: TuningPlan, use: bool) -> TuningView:
    """Follow the search to its end; Ctrl-C stops it."""
    tuning = Tuning(session.benchmarks, session.runtime, session.saved)
    try:
        tuning.start(plan)
        told = -1
        try:
            while (view := tuning.now()) is not None and view.is_live:
                told = _tell(view, told)
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            say("stopping")
            tuning.stop()
            view = tuning.wait(_STOP_PATIENCE_S)
        assert view is not None  # it was started
        _tell(view, told)
        if use and view.best:
            session.saved.save(view.trials[view.best].spec)
            say("kept for the model: its next load uses these settings")
        return view
    finally:
        tuning.close()


def _tell(view: TuningView, told: int) -> int:
    """Say each trial when it is done; gives how many were said."""
    ended = [trial.state not in ("loading", "measuring") for trial in view.trials]
    for place, trial in enumerate(view.trials):
        if place > told and all(ended[: place + 1]):
            print(_line(view, trial), file=sys.stderr, flush=True)
            told = place
    return told


def _line(view: TuningView, trial: Trial) -> str:
    figure = trial.figure
    value = report.in_words(figure.value, view.plan.goal) if figure else "–"
    verdict = trial.message
    if not verdict and trial.difference is not None:
        verdict = trial.difference.verdict
    return f"  {trial.title:<44} {value:>18}  {verdict}".rstrip()


def _lines(view: TuningView) -> list[str]:
    rows = [_line(view, trial) for trial in view.trials]
    note = [view.message] if view.message else []
    best = view.trials[view.best] if view.trials and view.best else None
    said = [f"--engine-arg {name}={_argument(value)}" for name, value in best.changes.items()] if best else []
    return [
        view.plan.goal.title,
        *rows,
        view.words,
        *note,
        *([f"Load with: {' '.join(said)}"] if said else []),
    ]


def _argument(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _data(view: TuningView) -> dict[str, Any]:
    def plain(found: figures.Figure | Any) -> dict[str, Any] | None:
        return dataclasses.asdict(found) if found is not None else None

    return {
        "group": view.group,
        "state": view.state,
        "message": view.message,
        "metric": view.plan.metric,
        "elapsed_s": round(view.elapsed_s, 1),
        "best": dict(view.trials[view.best].changes) if view.trials else {},
        "verdict": plain(view.verdict),
        "is_confirmed": view.is_confirmed,
        "words": view.words,
        "trials": [
            {
                "changes": dict(trial.changes),
                "state": trial.state,
                "message": trial.message,
                "benchmark_ids": trial.benchmark_ids,
                "load_s": trial.load_s,
                "figure": plain(trial.figure),
                "difference": plain(trial.difference),
            }
            for trial in view.trials
        ],
    }
