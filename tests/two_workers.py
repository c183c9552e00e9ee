"""How `pytest -n 2` spreads the tests over two workers: whole files, the long ones first.

All files whose tests use the one real engine go to the same worker, so that the other never loads it.
Each worker keeps to its half of the processors: vLLM's threads wait for each other in a busy loop, and
would take both from everybody.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
SHARED_ENGINE = ("engine_runtime", "engine_contract")
"""What a file says that uses the real engine: the fixture, or the contract that asks for it by name."""
LONG = (
    "test_load_cycles.py",
    "test_embedded.py",
    "test_browser.py",
    "test_microscope_engine.py",
    "test_shutdown.py",
    "test_adapters_engine.py",
    "test_bench_engine.py",
    "test_bench_vllm.py",
    "test_cli.py",
)
"""Files that take a minute or more, and their order: begun late, they would leave one worker alone."""


@cache
def group_of(path: str) -> str:
    """What one worker runs, one test after another. `path`: a test file, as in the ids of its tests."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return "engine" if any(name in text for name in SHARED_ENGINE) else path


def turn_of(path: str) -> int:
    """When the group of this file begins: the engine's first, as it is the longest."""
    if group_of(path) == "engine":
        return -1
    name = Path(path).name
    return LONG.index(name) if name in LONG else len(LONG)


def file_of(test_id: str) -> str:
    return test_id.partition("::")[0]


class ByGroup(LoadScopeScheduling):
    """xdist's own `loadgroup` writes the group into a test's id, which pytest 9.2 does not let it."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # it would put the files with the most tests first

    def _split_scope(self, nodeid: str) -> str:
        return group_of(file_of(nodeid))


def keep_to_own_processors() -> None:
    """Bind this worker, and what it starts, to its share of the processors, where there are enough."""
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if not hasattr(os, "sched_setaffinity"):  # macOS
        return
    allowed = sorted(os.sched_getaffinity(0))
    share = len(allowed) // workers
    if share and number < workers:
        os.sched_setaffinity(0, allowed[number * share : (number + 1) * share])
