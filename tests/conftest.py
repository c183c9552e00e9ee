"""Shared fixtures: settings with a home of their own, the scripted engine, one real engine for all."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import batch_runs
import hypothesis
import pytest
import streamlit as st
import two_workers
from batch_runs import Batches
from playwright.sync_api import Browser, expect, sync_playwright
from streamlit.runtime.pages_manager import PagesManager

from core import embedded
from core.bootstrap import find_browser
from core.jobs import Jobs
from core.runtime import Runtime
from core.settings import Settings, load_settings
from core.store import Store
from core.types import EngineSpec
from pages.parts import session

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # begun in the background of a script; the programs that tests press Ctrl-C in would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# the programs that tests start are compiled once, not each time
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# how long an example takes is up to what else the machine does
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        two_workers.keep_to_own_processors()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: two_workers.turn_of(two_workers.file_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return two_workers.ByGroup(config, log)


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


@pytest.fixture
def make_scripted_runtime(tmp_path: Path) -> Iterator[Callable[..., Runtime]]:
    """Makes runtimes of the scripted engine, each with a workspace of its own; takes Settings' fields."""
    made: list[Runtime] = []

    def make(**values: Any) -> Runtime:
        settings = Settings(home=tmp_path / f"home{len(made)}", engine="scripted", **values)
        for folder in (settings.runs_dir, settings.models_dir, settings.logs_dir, settings.uploads_dir):
            folder.mkdir(parents=True)
        runtime = Runtime(settings)
        made.append(runtime)
        runtime.load()
        runtime.wait_ready(20)
        return runtime

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def make_batches(make_scripted_runtime: Callable[..., Runtime]) -> Iterator[Callable[..., Batches]]:
    """Makes what batch runs need, each in a workspace of its own; takes Settings' fields."""
    with contextlib.ExitStack() as stack:
        yield lambda **values: stack.enter_context(batch_runs.opened(make_scripted_runtime(**values)))


@pytest.fixture
def batches(make_batches: Callable[..., Batches]) -> Batches:
    return make_batches()


@pytest.fixture
def jobs(batches: Batches) -> Jobs:
    return batches.jobs


@pytest.fixture
def runtime(make_scripted_runtime: Callable[..., Runtime]) -> Runtime:
    """Scripted, 100 tokens a second: slow enough to be caught in the middle."""
    return make_scripted_runtime(scripted_tokens_per_s=100.0)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """The catalogue of the test's own workspace."""
    store = Store(settings.catalogue_path)
    yield store
    store.close()


@pytest.fixture
def workspace(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The pages with the scripted engine: nothing cached before, everything closed after."""
    monkeypatch.setenv("WORKBENCH_ENGINE", "scripted")
    make = PagesManager.__init__

    def make_for_navigation(self: PagesManager, *args: Any, **kwargs: Any) -> None:
        """AppTest undoes what Home.py says when it is served: pages are run by st.navigation, not alone."""
        make(self, *args, **kwargs)
        PagesManager.uses_pages_directory = False

    monkeypatch.setattr(PagesManager, "__init__", make_for_navigation)
    st.cache_resource.clear()
    yield settings
    session.close()
    st.cache_resource.clear()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. For one module: its event loop is this thread's, and other tests have their own."""
    expect.set_options(timeout=20_000)  # its 5 s are short on a machine that also runs an engine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser
        browser.close()


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
