"""Results as files: ours as `vllm bench` writes them, and those that `vllm bench` wrote, read back.

A file of a serving point has the fields of `vllm bench serve --save-result --save-detailed` (0.32), those
of the other two the fields of `vllm bench throughput|latency --output-json`. What vLLM's form has no
place for stands under one more key, "workbench", which other tools pass over. Files from outside are
not trusted: every field is checked, sizes are bounded, and nothing in them becomes a path.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

import core
from core.bench import metrics
from core.bench.file_reading import MAX_BYTES, Contents, load
from core.bench.records import EngineSample, Point
from core.bench.spec import BenchSpec
from core.machine import Machine
from core.types import EngineInfo, EngineSpec

__all__ = ["MAX_BYTES", "Contents", "environment", "load", "read", "to_json"]

# of a throughput or latency result: what vLLM writes; all else goes under our own key
_VLLM_FIELDS = {
    "throughput": (
        "elapsed_time",
        "num_requests",
        "total_num_tokens",
        "requests_per_second",
        "tokens_per_second",
    ),
    "latency": ("avg_latency", "latencies", "percentiles"),
}
_SAMPLE_FIELDS = tuple(field.name for field in dataclasses.fields(EngineSample))
# of what was asked for at the load: what says nothing of speed, is said elsewhere, or is nobody's business
_NOT_SHOWN = frozenset({"engine", "model", "hub", "revision", "base_url", "trust_remote_code"})


def read(data: bytes) -> tuple[str, tuple[Point, ...]]:
    """(kind, points) of a file by `vllm bench` or by `to_json`. Raises BenchError for anything else."""
    contents = load(data)
    return contents.kind, contents.points


def environment(info: EngineInfo, spec: EngineSpec, machine: Machine) -> dict[str, Any]:
    """What a benchmark runs on: model, engine, settings in force, versions, machine. JSON values only.

    `settings` are those in force; `asked` what the load was told beside the model, where it was told
    anything. Keys, addresses and folders are left out: results are passed on.
    """
    asked = {
        field.name: value
        for field in dataclasses.fields(spec)
        if field.name not in _NOT_SHOWN and (value := getattr(spec, field.name)) not in (None, "auto", False)
    }
    return {
        "model": info.model,
        "revision": info.revision,
        "engine": spec.engine,
        "engine_version": info.engine_version,
        "device": info.device,
        "dtype": info.dtype,
        "max_model_len": info.max_model_len,
        "max_num_seqs": info.max_num_seqs,
        "kv_cache_tokens": info.kv_cache_tokens,
        "settings": _plain(info.settings),
        "asked": _plain(asked),
        "workbench_version": core.__version__,
        "python": machine.python,
        "versions": dict(machine.versions),
        "os": machine.os,
        "cpu": machine.cpu,
        "cores": machine.cores,
        "physical_cores": machine.physical_cores,
        "memory_bytes": machine.memory_bytes,
        "gpus": [gpu.name for gpu in machine.gpus],
    }


def to_json(point: Point, spec: BenchSpec | None, environment: Mapping[str, Any]) -> dict[str, Any]:
    """A point as JSON values, in vLLM's form. `spec` None: it came from a file of vLLM's.

    The kind is the specification's, or else told by the result's fields.
    """
    kind = spec.kind if spec else kind_of(point.result)
    model = environment.get("model")
    ours: dict[str, Any] = {
        "version": core.__version__,
        "kind": kind,
        "spec": spec.model_dump(mode="json") if spec else None,
        "load": point.load.model_dump(mode="json") if point.load else None,
        "number": point.number,
        "repeat": point.repeat,
        "is_whole": point.is_whole,
        "environment": dict(environment),
        "samples": {name: [getattr(sample, name) for sample in point.samples] for name in _SAMPLE_FIELDS},
        "cached_tokens": [record.cached_tokens for record in point.records],
        "finish_reasons": [record.finish_reason for record in point.records],
    }
    if kind == "serve":
        document = {**_conditions(point, environment), **point.result}
        if point.records:
            document |= metrics.details(point.records)
    else:
        known = _VLLM_FIELDS[kind]
        document = {"model_id": model, **{name: point.result.get(name) for name in known}}
        ours["result"] = {name: value for name, value in point.result.items() if name not in document}
        ours["records"] = metrics.details(point.records)
    return {**document, "workbench": ours}


def kind_of(result: Mapping[str, Any]) -> str:
    """Which of the three a result is, by its fields."""
    if "avg_latency" in result:
        return "latency"
    return "throughput" if "elapsed_time" in result else "serve"


def _conditions(point: Point, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which `vllm bench serve` says what was asked."""
    load = point.load
    burstiness: float | str = 1.0
    if load is not None and load.arrivals != "poisson":
        burstiness = load.burstiness if load.arrivals == "gamma" else "inf"  # vLLM's word for equal gaps
    return {
        "date": f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}",
        "endpoint_type": environment.get("engine"),
        "backend": environment.get("engine"),
        "label": None,
        "model_id": environment.get("model"),
        "tokenizer_id": environment.get("model"),
        "num_prompts": len(point.records),
        "request_rate": "inf" if load is None or load.request_rate is None else load.request_rate,
        "burstiness": burstiness,
        "max_concurrency": load.max_concurrency if load else None,
    }


def _plain(value: Any) -> Any:
    """`value` with JSON's types only; what has none is text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)
