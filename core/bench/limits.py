"""How far a benchmark stayed from its device's limit: finds the model's facts and the device's rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core import embedded, engine_settings
from core.bench import device_rates, roofline
from core.bench.device_rates import DeviceRates
from core.bench.records import Point
from core.bench.roofline import Reached, Roof
from core.errors import ModelError, ParameterError
from core.models import facts, locate
from core.models.facts import ModelFacts
from core.settings import Settings
from core.types import EngineSpec, EngineStatus

_ENGINES = ("vllm", "transformers", "llamacpp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A model on a measured device. `facts_of` says which."""

    device: str
    rates: DeviceRates
    roof: Roof


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why a limit can't be told. `device`: the one to measure, where that would help."""

    reason: str
    device: str | None = None


def limit_of(
    environment: Mapping[str, Any], settings: Settings, loaded: EngineStatus | None = None
) -> Limit | Unknown:
    """The roof over a benchmark that ran in `environment` (see `core.bench.files`).

    A benchmark keeps its model's name, not its place: `loaded` tells that of a folder of one's own.
    """
    device = device_rates.device_of(environment)
    if device is None or environment.get("engine") not in _ENGINES:
        return Unknown("The engine computed elsewhere, or not at all: there is no device to hold it against.")
    spec = _spec(environment)
    known = _facts(_place(spec, environment, loaded), settings)
    if isinstance(known, str):
        return Unknown(known)
    rates = device_rates.kept(settings, device)
    if rates is None:
        return Unknown(f"What {device} can give hasn't been measured here yet.", device)
    dtype = str(environment.get("dtype"))
    roof = roofline.roof_over(known, spec, rates.bandwidth, rates.flops_of(dtype))
    if isinstance(roof, str):
        return Unknown(roof)
    return Limit(device=device, rates=rates, roof=roof)


def reached(point: Point, limit: Limit) -> Reached | Unknown:
    """How near a point came to it."""
    found = roofline.reached(point, limit.roof)
    return Unknown(found) if isinstance(found, str) else found


def _spec(environment: Mapping[str, Any]) -> EngineSpec:
    """As it was loaded, as far as that bears on the limit."""
    asked = environment.get("asked") or {}
    spec = EngineSpec(engine=environment["engine"], model=str(environment.get("model")))
    known = {name: value for name, value in asked.items() if name in engine_settings.BY_NAME}
    try:
        return engine_settings.apply(spec, {**known, "dtype": _dtype(environment)})
    except ParameterError:  # an imported file with settings that this version doesn't know
        return spec


def _dtype(environment: Mapping[str, Any]) -> str:
    """In force, where it is one of torch's: llama.cpp names its files' own."""
    dtype = str(environment.get("dtype"))
    return dtype if dtype in ("bfloat16", "float16", "float32") else "auto"


def _place(spec: EngineSpec, environment: Mapping[str, Any], loaded: EngineStatus | None) -> EngineSpec:
    """`spec` with the model as it is loaded from, where that is the same one."""
    revision = environment.get("revision")
    found = replace(spec, revision=revision if isinstance(revision, str) else None)
    if loaded is None or loaded.info is None or loaded.spec is None:
        return found
    if (loaded.info.model, loaded.spec.engine) != (spec.model, spec.engine):
        return found
    return replace(found, model=loaded.spec.model, hub=loaded.spec.hub)


def _facts(spec: EngineSpec, settings: Settings) -> ModelFacts | str:
    path = _path(spec, settings)
    if path is None:
        return f"The model {spec.model} isn't found here by its name: load it, and its sizes are known."
    try:
        return facts.read(path)
    except ModelError as error:
        return str(error)


def _path(spec: EngineSpec, settings: Settings) -> Path | None:
    if spec.model in (embedded.EMBEDDED_MODEL, "embedded"):
        there = embedded.is_ready(settings)
        if spec.engine == "llamacpp" and there:
            return embedded.gguf(settings, lambda stage: None)
        if there:
            return embedded.path(settings)
    found = locate.find(spec.model, settings, hub=spec.hub, revision=spec.revision)
    return found.path if found else None
