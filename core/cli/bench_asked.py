"""What `python -m core bench` is told, as a specification. Names and forms are those of `vllm bench`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from core import openai_batch, sampling, tables
from core.bench.spec import (
    METRICS,
    Arrivals,
    BenchSpec,
    ConversationWorkload,
    Load,
    RandomWorkload,
    SharedPrefixWorkload,
    Sweep,
    TableWorkload,
    Workload,
)
from core.cli.bench_options import DATASETS, PointOptions, WorkloadOptions
from core.cli.options import pairs
from core.errors import ParameterError
from core.run_spec import PromptSpec

_LENGTHS = ("num_prompts", "input_len", "output_len", "range_ratio", "prefix_len", "suffix_len",
            "num_prefixes")  # fmt: skip
_OF_TABLES = ("template", "system", "param_column", "adapter", "adapter_column")
_SWEPT = ("request_rate", "max_concurrency")
_NUMBER = re.compile(r"(\w+)[:=](\d+(?:\.\d+)?)")


def spec(**values: Any) -> BenchSpec:
    """Raises ParameterError with what is wrong, by the option's name."""
    try:
        return BenchSpec(**values)
    except ValidationError as error:
        raise _refused(error) from error


def read(path: Path) -> BenchSpec:
    """The specification in a file: alone, or under a result's "workbench". Raises ParameterError."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        try:
            found = json.loads(text)
        except ValueError:  # several results, one a line, have the same
            found = json.loads(text.partition("\n")[0])
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path} can't be read: {error}.", hint="Give a file of JSON.") from error
    if isinstance(found, dict) and isinstance(found.get("workbench"), dict):
        found = found["workbench"].get("spec")
    if not isinstance(found, dict):
        raise ParameterError(f"{path.name} holds no specification.", hint="Files by vLLM itself have none.")
    return spec(**found)


def workload(options: WorkloadOptions) -> Workload:
    """The workload of a --dataset-name. Raises ParameterError for what is missing or belongs to another."""
    dataset, path = options.dataset_name, options.dataset_path
    kinds = {
        "random": RandomWorkload,
        "table": TableWorkload,
        "sharegpt": ConversationWorkload,
        "prefix_repetition": SharedPrefixWorkload,
    }
    if dataset not in kinds:
        raise ParameterError(f"There is no dataset {dataset!r}.", hint=f"There are: {', '.join(DATASETS)}.")
    kind = kinds[dataset]
    said = {name: value for name in _LENGTHS if (value := getattr(options, name)) is not None}
    surplus = [name for name in said if name not in kind.model_fields]
    if kind is not TableWorkload:
        surplus += [name for name in _OF_TABLES if getattr(options, name)]
    if path is not None and "path" not in kind.model_fields:
        surplus.append("dataset_path")
    if surplus:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in surplus)
        raise ParameterError(f"{listed}: not for the dataset {dataset}.", hint="Leave it out.")
    if "path" in kind.model_fields:
        said["path"] = str(_file(path, dataset))
    if kind is TableWorkload:
        said["prompt"] = _prompt(Path(said["path"]), options)
    try:
        return kind(**said)
    except ValidationError as error:
        raise _refused(error) from error


def point_fields(options: PointOptions) -> dict[str, Any]:
    """As fields of a BenchSpec. Raises ParameterError for a sampling parameter."""
    return {
        "repeats": options.repeats,
        "seed": options.seed,
        "params": {"temperature": 1.0, **sampling.parse_assignments(options.param or [])},
        "ignore_eos": options.ignore_eos,
    }


def _file(path: Path | None, dataset: str) -> Path:
    if path is None:
        raise ParameterError(f"--dataset-path is missing: which file for {dataset}?")
    if not path.is_file():
        raise ParameterError(f"{path} is no file.", hint="Check the path.")
    return path.absolute()  # it is read again from wherever the benchmark is repeated


def _prompt(path: Path, options: WorkloadOptions) -> PromptSpec:
    said: dict[str, Any] = {
        "param_columns": pairs(options.param_column or []),
        "adapter": options.adapter,
        "adapter_column": options.adapter_column,
    }
    if options.template is not None:
        return PromptSpec(template=options.template, system=options.system, **said)
    columns = tables.preview(path, rows=1).columns
    if openai_batch.is_batch(columns):
        if options.system or any(said.values()):
            raise ParameterError("Lines of a Batch file say all of that themselves.", hint="Leave it out.")
        return PromptSpec(mode="openai")
    listed = ", ".join(column.name for column in columns[:30])
    raise ParameterError(f"--template is missing. The table's columns: {listed}.")


def loads(
    rates: str | None, concurrencies: str | None, burstiness: float, arrivals: str | None
) -> tuple[Load, ...]:
    """Each of the rates ("inf", "1,2,4") with each of the concurrencies ("8", "1,4,16").

    Without `arrivals`, a burstiness other than 1 means gamma, as in `vllm bench serve`.
    """
    how = arrivals or ("poisson" if burstiness == 1 else "gamma")
    if how not in get_args(Arrivals):
        raise ParameterError(
            f"There are no arrivals {how!r}.", hint=f"There are: {', '.join(get_args(Arrivals))}."
        )
    if how != "gamma" and burstiness != 1:
        raise ParameterError(f"--burstiness has no meaning for {how} arrivals.", hint="Leave one out.")
    found_rates = _numbers("--request-rate", rates or "inf")
    found_most = _numbers("--max-concurrency", concurrencies) if concurrencies else [None]
    for most in found_most:
        if most is not None and (most != int(most) or most < 1):
            raise ParameterError(f"--max-concurrency {most:g} is no whole number above 0.")
    return tuple(
        Load(
            request_rate=None if rate == float("inf") else rate,
            max_concurrency=None if most is None else int(most),
            arrivals=how,
            burstiness=burstiness,
        )
        for rate, most in itertools.product(found_rates, found_most)
    )


def sweep(over: str | None, start: float, factor: float, least_gain: float, points: int) -> Sweep | None:
    if over is None:
        return None
    over = over.replace("-", "_")
    if over not in _SWEPT:
        raise ParameterError(f"A sweep goes over {' or '.join(_SWEPT)}, not over {over!r}.")
    try:
        return Sweep(over=over, start=start, factor=factor, least_gain=least_gain, most_points=points)
    except ValidationError as error:
        raise _refused(error) from error


def goodput(said: Sequence[str]) -> dict[str, float]:
    """ "ttft:500 tpot:50", in one word or several: the most milliseconds of each."""
    limits = {}
    for pair in " ".join(said).replace(",", " ").split():
        found = _NUMBER.fullmatch(pair)
        if found is None or found[1] not in ("ttft", "tpot", "e2el"):
            raise ParameterError(
                f"--goodput {pair!r} is not of the form NAME:MILLISECONDS.",
                hint="Names are ttft, tpot and e2el: --goodput ttft:500 tpot:50, say.",
            )
        limits[found[1]] = float(found[2])
    return limits


def metric_names(said: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in said.split(",") if part.strip())
    for name in names:
        if name not in METRICS:
            raise ParameterError(f"There is no metric {name!r}.", hint=f"There are: {', '.join(METRICS)}.")
    return names


def percentiles(said: str) -> tuple[float, ...]:
    return tuple(_numbers("--metric-percentiles", said))


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ParameterError(
            f"{option} {text!r} is no number, and no list of them.", hint="1,2,4, say."
        ) from error
    if not all(number > 0 for number in numbers):
        raise ParameterError(f"{option} {text!r}: numbers must be above 0.")
    return numbers


def _refused(error: ValidationError) -> ParameterError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if isinstance(part, str) and part not in DATASETS]
    option = f"--{place[-1].replace('_', '-')}: " if place else ""
    return ParameterError(f"{option}{first['msg'].removeprefix('Value error, ')}.")
