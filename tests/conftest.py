"""Shared fixtures: settings with a home of their own, the scripted engine, one real engine for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core import embedded
from core.runtime import Runtime
from core.settings import Settings, load_settings
from core.types import EngineSpec


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A workspace that exists for this test alone, also for processes it starts."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    return load_settings()


@pytest.fixture
def scripted_runtime(settings: Settings) -> Iterator[Runtime]:
    """A runtime with the scripted engine, ready."""
    runtime = Runtime(settings)
    runtime.load(EngineSpec(engine="scripted"))
    runtime.wait_ready(10)
    yield runtime
    runtime.close()


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The embedded model's folder, prepared once in the user's own workspace and kept there."""
    return embedded.prepare(load_settings(), lambda stage: None)


@pytest.fixture(scope="session")
def engine_spec(embedded_model: Path) -> EngineSpec:
    """Real vLLM, small enough to share the machine with other tests."""
    return EngineSpec(model=str(embedded_model), max_num_seqs=32, kv_cache_memory_bytes=400 << 20)


@pytest.fixture(scope="session")
def engine_runtime(engine_spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """The one real engine that all tests share: leave it loaded, and in good health."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("engine-home")))
        runtime = Runtime(load_settings())
        runtime.load(engine_spec)
        runtime.wait_ready(280)
    yield runtime
    runtime.close()
