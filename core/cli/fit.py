"""`python -m core models fit`: does a model fit, here or on a machine that is named."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from core import engine_settings, machine
from core.engines import choice
from core.errors import ModelError, ParameterError
from core.hub import choosing, repositories
from core.models import facts, fit, fit_sizes, remote_facts
from core.models.facts import ModelFacts
from core.models.fit import Device, Fit
from core.models.library import Library
from core.settings import Settings, load_settings
from core.store import Store
from core.types import EngineSpec, Hub

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def fit_model(
    model: Annotated[
        str, typer.Argument(help="A model of the library, a folder, a GGUF file, or a hub's id.")
    ] = "",
    config: Annotated[Path | None, typer.Option(help="A config.json alone, instead of a model.")] = None,
    hub: Annotated[
        Hub, typer.Option("--hub", help="Where a model that isn't here is looked up.")
    ] = "huggingface",
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of the hub.")] = None,
    memory: Annotated[
        str, typer.Option(help="Memory of one device, such as 24GiB; else this machine's.")
    ] = "",
    gpus: Annotated[int, typer.Option(min=0, help="With --memory: so many such GPUs; 0 is a CPU.")] = 1,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="The context that is wanted.")] = None,
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="Any engine setting, NAME=VALUE; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say whether a model fits: weights, KV cache, longest context, and what would help. Loads nothing."""
    if bool(model) == (config is not None):
        raise ParameterError("Give a model, or --config FILE.")
    known = _facts(model, config, hub, revision, load_settings())
    name = "x.gguf" if known.format == "gguf" else model or str(config)
    device = _device(memory, gpus) if memory else fit.device_of(machine.describe())
    engine = choice.suggest(name) if not memory or known.format == "gguf" else "vllm"
    spec = engine_settings.apply(
        EngineSpec(engine=engine, model=model or str(config)),
        engine_settings.parse_assignments(engine_arg or ()),
    )
    spec = dataclasses.replace(spec, max_model_len=max_model_len or spec.max_model_len)
    estimate, options = fit.estimate(known, device, spec), fit.options(known, device, spec)
    if as_json:
        print(json.dumps(_as_json(known, estimate, options)))
    else:
        print("\n".join(_lines(known, estimate, options)))


def _facts(model: str, config: Path | None, hub: Hub, revision: str | None, settings: Settings) -> ModelFacts:
    if config is not None:
        try:
            data = config.read_bytes()
        except OSError as error:
            raise ModelError(f"{config} can't be read: {error.strerror}.") from error
        return facts.from_config(facts.read_config(data, str(config)))
    path = Path(model).expanduser()
    if path.exists():
        return facts.read(path)
    store = Store(settings.catalogue_path)
    try:
        found = Library(settings, store).find(model)
        if found.facts is not None:
            return found.facts
        raise ModelError(
            f"What {found.name} takes can't be told: {found.problem or 'it was never loaded here.'}",
            hint=found.hint or "`models prepare` makes the embedded model ready.",
        )
    except ModelError:
        if not _HUB_ID.fullmatch(model):
            raise
    finally:
        store.close()
    repo = repositories.look(hub, model, revision, settings=settings)
    files = choosing.choose(repo).taken
    if not any(file.suffix in (".safetensors", ".gguf") for file in files):
        suggested = choosing.suggested_gguf(repo)
        files = choosing.ggufs(repo)[suggested] if suggested else files
    return remote_facts.read(hub, repo.repo, repo.commit or revision, files, settings)


def _device(memory: str, gpus: int) -> Device:
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?)b?\s*", memory, re.IGNORECASE)
    try:
        size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    except ValueError:
        size = 0
    if not 1 << 20 <= size <= 1 << 50:
        raise ParameterError(f"{memory!r} is no memory size.", hint="24GiB, say.")
    kind = "cuda" if gpus else "cpu"
    return Device(kind=kind, name=f"{'GPU' if gpus else 'CPU'} of {fit_sizes.size_text(size)}",
                  memory_bytes=size, count=max(1, gpus))  # fmt: skip


def _lines(known: ModelFacts, estimate: Fit, options: tuple[fit.Option, ...]) -> list[str]:
    memory = fit_sizes.size_text(estimate.device.memory_bytes)
    parameters = f", {known.parameters / 1e9:,.2f} billion parameters" if known.parameters else ""
    rows = [
        ("weights", fit_sizes.size_text(estimate.weights_bytes), ""),
        (
            "KV cache",
            fit_sizes.size_text(estimate.kv_cache_bytes),
            f"{estimate.kv_bytes_per_token:,} bytes a token",
        ),
        *((part.name, fit_sizes.size_text(part.size_bytes), part.source) for part in estimate.overhead),
        (
            "longest context",
            f"{estimate.largest_context:,}",
            f"of the model's {estimate.model_context_tokens:,} tokens",
        ),
        (
            "at full length",
            f"{estimate.full_length_requests:.1f}",
            f"requests of {estimate.context_tokens:,} tokens at once",
        ),
    ]
    if estimate.verdict == "too large":
        rows = [row for row in rows if row[0] not in ("KV cache", "longest context", "at full length")]
    return [
        f"{known.architecture}{parameters}, {known.quantization or known.dtype}",
        f"on {estimate.device.name}, {memory}, {estimate.spec.engine}",
        f"{estimate.verdict}: {estimate.advice}",
        *(f"  {name:<16}{figure:>10}  {words}".rstrip() for name, figure, words in rows),
        *estimate.notes,
        *([fit.NOTHING_HELPS] if estimate.verdict == "too large" and not options else []),
        *(f"would fit: {option.title}  ({_settings(option.changes)})" for option in options),
    ]


def _settings(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={'automatic' if value is None else value}" for name, value in changes.items())


def _as_json(known: ModelFacts, estimate: Fit, options: tuple[fit.Option, ...]) -> Mapping[str, Any]:
    names = ("verdict", "advice", "weights_bytes", "kv_cache_bytes", "kv_bytes_per_token", "kv_cache_tokens",
             "context_tokens", "model_context_tokens", "largest_context", "full_length_requests",
             "missing_bytes", "notes")  # fmt: skip
    return {
        "architecture": known.architecture,
        "parameters": known.parameters,
        "quantization": known.quantization,
        **{name: getattr(estimate, name) for name in names},
        "overhead": {part.name: part.size_bytes for part in estimate.overhead},
        "options": [{"title": option.title, "changes": dict(option.changes)} for option in options],
    }
