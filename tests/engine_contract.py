"""The engines that `test_engine_contract` holds to one contract, each as the runtime loads it.

To add one: a context manager that yields a `Subject`, in ENGINES. It may ask for fixtures through
`request.getfixturevalue` (session- and module-scoped ones), and skips with a reason where it can't run.
One engine is alive at a time, beside the one that all tests share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pytest
from vllm_server import vllm_server

from core.engines.base import Engine
from core.runtime import Runtime
from core.settings import Settings
from core.types import EngineSpec, LoraAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine to be tested, on the loop that `run` runs coroutines on.

    `kill` ends its processes as an accident would, None where there are none or others need them.
    `adapter`: one that it can load, where it has "adapters".
    """

    engine: Engine
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    spawn: Callable[[Coroutine[Any, Any, Any]], Any]
    kill: Callable[[], None] | None = None
    adapter: LoraAdapter | None = None


Open = Callable[[pytest.FixtureRequest], AbstractContextManager[Subject]]


@contextlib.contextmanager
def loaded(
    request: pytest.FixtureRequest, spec: EngineSpec, *, may_die: bool = False, **settings: Any
) -> Iterator[Subject]:
    """An engine of a runtime of its own. `may_die`: the last test kills its processes."""
    home = request.getfixturevalue("tmp_path_factory").mktemp(spec.engine)
    runtime = Runtime(Settings(home=home, **settings))
    try:
        runtime.load(spec)
        runtime.wait_ready(120)
        before = {child.pid for child in psutil.Process().children(recursive=True)}

        def kill() -> None:
            own = runtime._guard.pids
            assert before.issuperset(own) and own
            for pid in own:
                psutil.Process(pid).kill()

        yield Subject(
            engine=runtime.engine,
            run=runtime.run,
            spawn=runtime.spawn,
            kill=kill if may_die else None,
            adapter=LoraAdapter("grumpy", str(home), 1) if spec.engine == "scripted" else None,
        )
    finally:
        runtime.close()


def scripted(request: pytest.FixtureRequest) -> AbstractContextManager[Subject]:
    return loaded(request, EngineSpec(engine="scripted"), scripted_tokens_per_s=1000.0)


@contextlib.contextmanager
def vllm(request: pytest.FixtureRequest) -> Iterator[Subject]:
    runtime: Runtime = request.getfixturevalue("engine_runtime")
    yield Subject(engine=runtime.engine, run=runtime.run, spawn=runtime.spawn)


def transformers(request: pytest.FixtureRequest) -> AbstractContextManager[Subject]:
    model = str(request.getfixturevalue("embedded_model"))
    spec = EngineSpec(engine="transformers", model=model, max_num_seqs=8, max_model_len=1024)
    return loaded(request, spec, may_die=True)


def llamacpp(request: pytest.FixtureRequest) -> AbstractContextManager[Subject]:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: make llamacpp")
    spec = EngineSpec(engine="llamacpp", max_num_seqs=6, max_model_len=1024)
    return loaded(request, spec, may_die=True)


@contextlib.contextmanager
def openai(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """vLLM's own server, over the engine that all tests share. It dies alone."""
    with vllm_server(request.getfixturevalue("engine_runtime")) as served:
        spec = EngineSpec(engine="openai", model=served.model, base_url=served.base_url, max_model_len=1024)
        with loaded(request, spec) as subject:
            yield replace(subject, kill=served.stop)


ENGINES: dict[str, Open] = {
    "scripted": scripted,
    "vllm": vllm,
    "transformers": transformers,
    "openai": openai,
    "llamacpp": llamacpp,
}
REAL = frozenset({"vllm", "transformers", "openai", "llamacpp"})
"""Those with a model behind them: they are marked as engine tests."""
