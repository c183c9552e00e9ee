"""Ten loads and unloads of the real engine: memory comes back, and no process stays."""

import statistics
import time

import psutil
import pytest

from core import memory
from core.runtime import Runtime
from core.types import EngineSpec, Request

MIB = 1 << 20
CYCLES = 10
BOUND_BYTES = 48 * MIB
"""The most that the last loads may leave beyond the first ones: two cores, 14 MiB. An engine takes 1,300."""


def helpers():
    """Child processes of this one, by id, with their names."""
    return {child.pid: child.name() for child in psutil.Process().children(recursive=True)}


def wait_empty(runtime):
    end = time.monotonic() + 60
    while runtime.status().phase != "empty":
        assert time.monotonic() < end, runtime.status()
        time.sleep(0.02)


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_ten_loads_and_unloads_give_memory_and_processes_back(settings, embedded_model):
    spec = EngineSpec(
        model=str(embedded_model), max_model_len=256, max_num_seqs=2, max_num_batched_tokens=64,
        kv_cache_memory_bytes=16 * MIB,
    )  # fmt: skip
    runtime = Runtime(settings)
    before, after = helpers(), []
    try:
        for number in range(CYCLES):
            runtime.load(spec)
            engine = runtime.wait_ready(120)
            runtime.run(
                engine.complete(Request(id=f"{number}", prompt="One, two,", params={"max_tokens": 2}))
            )
            del engine
            runtime.unload()
            wait_empty(runtime)
            after.append(memory.tree_bytes())
        readings = runtime.memory_readings()
        # the guard, and multiprocessing's own helper, stay for the next load
        assert len(helpers()) - len(before) <= 2, helpers()
    finally:
        runtime.close()
    assert [reading.event for reading in readings] == ["load", "unload"] * CYCLES
    for load, unload in zip(readings[::2], readings[1::2], strict=True):
        assert load.after_bytes - load.before_bytes > 200 * MIB
        assert unload.before_bytes - unload.after_bytes > 200 * MIB
    # of three, as the system's figures lag behind now and then; the first load imports vLLM for good
    first, last = statistics.median(after[:3]), statistics.median(after[-3:])
    assert last - first < BOUND_BYTES, [size // MIB for size in after]
