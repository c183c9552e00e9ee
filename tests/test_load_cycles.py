"""Ten loads and unloads of the real engine: memory comes back, and no process stays."""

import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
CYCLES = 10
BOUND_BYTES = 48 * MIB
"""The most that the last loads may leave beyond the first ones: two cores, 14 MiB. An engine takes 1,300."""
HELPER = Path(__file__).parent / "load_cycles.py"


@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_ten_loads_and_unloads_give_memory_and_processes_back(settings, embedded_model, tmp_path):
    # in a process of its own: what other tests hold, and give back meanwhile, is not to be measured
    command = [sys.executable, str(HELPER), str(embedded_model), str(CYCLES)]
    log_path = tmp_path / "log"
    with log_path.open("wb") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as helper:
        try:
            printed, _ = helper.communicate(timeout=1100)
        except BaseException:
            helper.send_signal(signal.SIGTERM)  # it ends its engine too
            raise
    log = log_path.read_text(errors="replace")
    assert helper.returncode == 0, log[-4000:]
    left = json.loads(printed.splitlines()[-1])
    # the guard, and multiprocessing's own helper, stay for the next load
    assert len(left["processes"]) <= 2, left["processes"]
    assert [event for event, _, _ in left["readings"]] == ["load", "unload"] * CYCLES
    for (_, empty, loaded), (_, before, after) in zip(
        left["readings"][::2], left["readings"][1::2], strict=True
    ):
        assert loaded - empty > 200 * MIB
        assert before - after > 200 * MIB
    # of three, as the system's figures lag behind now and then; the first load imports vLLM for good
    first, last = statistics.median(left["after"][:3]), statistics.median(left["after"][-3:])
    assert last - first < BOUND_BYTES, [size // MIB for size in left["after"]]
