"""Which engines there are, which of them can run on this machine, and which is taken when nobody chose.

The one place that knows an engine by its name: whoever has a loaded one asks what it can do
(`info.cannot`), never which it is. Nothing heavy is imported before an engine is loaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from core import machine
from core.engines.base import Engine
from core.errors import EngineUnavailable
from core.machine import Machine
from core.types import EngineName

LOADERS: Mapping[EngineName, str] = {
    "vllm": "core.engines.vllm",
    "transformers": "core.engines.hf",
    "llamacpp": "core.engines.llamacpp",
    "openai": "core.engines.openai",
    "scripted": "core.engines.scripted",
}
"""Module of each engine. It has `load(spec, settings, *, report, log, guard, run) -> Engine`."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An engine to choose. `about` is one sentence; `obstacle` says why not here and what to do, or None."""

    engine: EngineName
    title: str
    about: str
    obstacle: str | None = None


def offers(here: Machine) -> tuple[Offer, ...]:
    """All engines, the fastest first, those that can't run on the machine `here` included."""
    return (
        Offer(
            "vllm",
            "vLLM",
            "The fastest: a continuous batch of hundreds of requests, with everything the workbench can ask.",
            machine.why_no_vllm(here),
        ),
        Offer(
            "transformers",
            "transformers",
            "Hugging Face's own `generate`: slow, runs nearly every model, the baseline to compare with.",
            _missing("transformers", "torch", "accelerate", command="make setup"),
        ),
        Offer(
            "llamacpp",
            "llama.cpp",
            "For GGUF files: small quantized models on a laptop's processor.",
            _missing("llama_cpp", command="make llamacpp"),
        ),
        Offer(
            "openai",
            "Remote endpoint",
            "Any server with OpenAI's API, such as a vLLM cluster: nothing is computed here.",
            _missing("openai", command="make setup"),
        ),
        Offer(
            "scripted",
            "Scripted",
            "No model: made-up answers at once, to try a file and a template.",
        ),
    )


def offer(engine: str, here: Machine | None = None) -> Offer:
    """The offer of that name. Raises EngineUnavailable when there is no such engine."""
    for each in offers(here or this_machine()):
        if each.engine == engine:
            return each
    names = ", ".join(get_args(EngineName))
    raise EngineUnavailable(f"There is no engine {engine!r}.", hint=f"Use one of {names}.")


def suggest(model: str, here: Machine | None = None) -> EngineName:
    """The engine for a model when nobody chose one: the first that reads it and can run here.

    vLLM's name when none can: its load then says what to install.
    """
    reads = ("llamacpp",) if model.lower().endswith(".gguf") else ("vllm", "transformers")
    can = [each.engine for each in offers(here or this_machine()) if each.obstacle is None]
    return next((engine for engine in reads if engine in can), reads[0])


def why_not_vllm(engine: str) -> str | None:
    """One line on why vLLM can't run here, where another local engine took its place; else None."""
    return offer("vllm").obstacle if engine in ("transformers", "llamacpp") else None


def loader(engine: str) -> Callable[..., Engine]:
    """The engine's `load`. Raises EngineUnavailable where it can't run, saying what to do."""
    obstacle = offer(engine).obstacle
    if obstacle:
        raise EngineUnavailable(obstacle)
    return importlib.import_module(LOADERS[engine]).load


@functools.cache
def this_machine() -> Machine:
    """The machine as it was first seen: devices and packages stay while this process lives."""
    return machine.describe()


def _missing(*modules: str, command: str) -> str | None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    verb = "isn't" if len(absent) == 1 else "aren't"
    return f"{' and '.join(absent)} {verb} installed: run `{command}`."
