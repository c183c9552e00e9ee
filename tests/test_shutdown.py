"""However the workbench ends, its engine's processes end with it. Real engines, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from core.errors import EngineDied
from core.runtime import Runtime
from core.types import EngineSpec, Request

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[1]
DRIVER = """
import json, sys, time
import psutil
from core.runtime import Runtime
from core.types import EngineSpec, Request

def main(model, when):
    runtime = Runtime()
    runtime.load(EngineSpec(model=model, max_num_seqs=8, kv_cache_memory_bytes=100 << 20))
    if when == "ready":
        runtime.wait_ready()
    while len(psutil.Process().children(recursive=True)) < 3:  # tracker, guard, and a first one of vLLM's
        time.sleep(0.05)
    if when == "busy":
        engine = runtime.wait_ready()
        runtime.spawn(engine.complete(Request(id="1", prompt="Once", params={"max_tokens": 4000})))
    try:
        print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
        time.sleep(1000)
    except KeyboardInterrupt:
        sys.exit(130)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@contextmanager
def driver(tmp_path: Path, model: Path, when: str) -> Iterator[tuple[subprocess.Popen[str], list]]:
    """A process with an engine, and the processes it has started so far; all are gone at the end."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    process = subprocess.Popen(
        [sys.executable, str(script), str(model), when],
        env=os.environ | {"WORKBENCH_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children: list[psutil.Process] = []
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        for pid in json.loads(line):
            with suppress(psutil.NoSuchProcess):
                children.append(psutil.Process(pid))
        yield process, children
    finally:
        for child in (*children, process):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.communicate()


def assert_all_gone(children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, [child.cmdline() for child in alive]


@pytest.mark.parametrize(
    ("when", "number"), [("busy", signal.SIGKILL), ("ready", signal.SIGTERM)], ids=["kill", "terminate"]
)
def test_a_killed_workbench_leaves_no_process(
    tmp_path: Path, embedded_model: Path, when: str, number: signal.Signals
) -> None:
    with driver(tmp_path, embedded_model, when) as (process, children):
        assert len(children) >= 3
        process.send_signal(number)
        assert process.wait(30) == -number
        assert_all_gone(children)
        # and all this time the terminal stayed the workbench's own, but for Python's own clean-up
        said = [line for line in process.stderr.read().splitlines() if "resource_tracker" not in line]
        assert (process.stdout.read(), said) == ("", [])


def test_ctrl_c_during_a_load_ends_it_quietly(tmp_path: Path, embedded_model: Path) -> None:
    with driver(tmp_path, embedded_model, "loading") as (process, children):
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        assert process.wait(60) == 130
        assert_all_gone(children)
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_an_engine_that_is_killed_comes_back(engine_runtime: Runtime, engine_spec: EngineSpec) -> None:
    first = engine_runtime.engine
    long = Request(id="long", prompt="Once upon a time", params={"max_tokens": 4000, "ignore_eos": True})
    pending = engine_runtime.spawn(first.complete(long))
    end = time.monotonic() + 20
    while not first.stats().output_tokens and time.monotonic() < end:
        time.sleep(0.05)
    victims = engine_runtime._guard.pids
    os.kill(victims[0], signal.SIGKILL)
    with pytest.raises(EngineDied):
        pending.result(30)
    second = engine_runtime.run(engine_runtime.wait_engine())
    assert second is not first
    assert second.spec == engine_spec
    answer = second.complete(Request(id="again", prompt="Once upon", params={"max_tokens": 2}))
    assert engine_runtime.run(answer).output_tokens >= 1
    assert not [pid for pid in victims if psutil.pid_exists(pid)]
