"""A benchmark's specification as the `python -m core bench` line that measures the same."""

from __future__ import annotations

import shlex
from typing import Any

from core import sampling
from core.bench.spec import METRICS, BenchSpec, Load, TableWorkload
from core.run_spec import PromptSpec

_SAID = ("num_prompts", "input_len", "output_len", "range_ratio", "prefix_len", "suffix_len", "num_prefixes")
_SWEEP = {
    "start": "--sweep-start",
    "factor": "--sweep-factor",
    "least_gain": "--sweep-gain",
    "most_points": "--sweep-points",
}


def command_line(spec: BenchSpec) -> str | None:
    """The line for a shell; None for what the command has no options for, such as few-shot examples."""
    workload = spec.workload
    words = ["python", "-m", "core", "bench", spec.kind]
    if isinstance(workload, TableWorkload):
        words_of_table = _of_table(workload)
        if words_of_table is None:
            return None
        words += words_of_table
    if spec.kind == "latency":
        words += _options(input_len=workload.input_len, output_len=workload.output_len)
        words += _options(
            batch_size=spec.batch_size, num_iters_warmup=spec.num_iters_warmup, num_iters=spec.num_iters
        )
    else:
        path = getattr(workload, "path", None)
        words += _options(dataset_name=workload.kind, dataset_path=path)
        words += _options(**{name: getattr(workload, name, None) for name in _SAID})
        words += _options(num_warmups=spec.num_warmups)
    if spec.kind == "serve":
        arriving = _arriving(spec)
        if arriving is None:
            return None
        words += arriving + _measured(spec)
    words += _options(repeats=spec.repeats, seed=spec.seed, name=spec.name or None)
    words += [f"--param={assignment}" for assignment in sampling.as_assignments(spec.params)]
    words += [] if spec.ignore_eos else ["--no-ignore-eos"]
    return shlex.join(words)


def _of_table(workload: TableWorkload) -> list[str] | None:
    """What is made of the rows; None where there are no options for it."""
    prompt = workload.prompt
    if workload.num_prompts is None:
        return None
    if prompt == PromptSpec(mode="openai"):
        return []
    said = ("template", "system", "param_columns", "adapter", "adapter_column")
    if prompt != PromptSpec(**{name: getattr(prompt, name) for name in said}):
        return None
    words = ["--template", prompt.template, *(["--system", prompt.system] if prompt.system else [])]
    words += [f"--param-column={name}={column}" for name, column in prompt.param_columns.items()]
    return words + _options(adapter=prompt.adapter, adapter_column=prompt.adapter_column)


def _arriving(spec: BenchSpec) -> list[str] | None:
    """The loads, or the sweep over them; None where the loads are no list of rates under one limit."""
    first = spec.loads[0] if spec.loads else Load()
    words = _options(arrivals=first.arrivals)
    words += _options(burstiness=first.burstiness if first.arrivals == "gamma" else None)
    if spec.sweep is not None:
        words += _options(sweep=spec.sweep.over)
        for name, option in _SWEEP.items():
            words += [option, _number(getattr(spec.sweep, name))]
        words += _options(
            max_concurrency=first.max_concurrency if spec.sweep.over == "request_rate" else None
        )
        rate = first.request_rate if spec.sweep.over == "max_concurrency" else None
        return words + _options(request_rate=rate)
    if any(load != _with(first, load.request_rate, load.max_concurrency) for load in spec.loads):
        return None
    rates = list(dict.fromkeys(load.request_rate for load in spec.loads))
    most = list(dict.fromkeys(load.max_concurrency for load in spec.loads))
    asked = tuple(_with(first, rate, value) for rate in rates for value in most)
    if asked != spec.loads or (None in most and len(most) > 1):
        return None
    words += ["--request-rate", ",".join("inf" if rate is None else _number(rate) for rate in rates)]
    if most != [None]:
        words += ["--max-concurrency", ",".join(str(value) for value in most)]
    return words


def _with(load: Load, rate: float | None, most: int | None) -> Load:
    return load.model_copy(update={"request_rate": rate, "max_concurrency": most})


def _measured(spec: BenchSpec) -> list[str]:
    words = [f"{name}:{_number(limit)}" for name, limit in spec.goodput.items()]
    words = [word for limit in words for word in ("--goodput", limit)]
    if spec.percentile_metrics != METRICS:
        words += ["--percentile-metrics", ",".join(spec.percentile_metrics)]
    return [*words, "--metric-percentiles", ",".join(_number(one) for one in spec.metric_percentiles)]


def _options(**values: Any) -> list[str]:
    """--num-prompts 200 and so on; nothing for None."""
    return [
        word
        for name, value in values.items()
        if value is not None
        for word in (
            f"--{name.replace('_', '-')}",
            _number(value) if isinstance(value, float) else str(value),
        )
    ]


def _number(value: float) -> str:
    return f"{value:.12g}"
