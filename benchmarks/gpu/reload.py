"""GPU memory after unloading: a model is loaded and unloaded again and again, in one process.

    python benchmarks/gpu/reload.py MODEL [--times 10]

Prints the memory in use on the GPU (all programs, as the driver tells) before the first load, with the model
loaded, and after each unload, and the processes that are left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
import pynvml
from workbench import say, say_conditions

from core.runtime import Runtime
from core.settings import Settings
from core.types import EngineSpec


def used_mib() -> float:
    return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    say_conditions()
    pynvml.nvmlInit()
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(Settings(home=Path(folder)))
        own = {child.pid for child in psutil.Process().children(recursive=True)}
        say(what="before", used_mib=used_mib(), resident_mib=psutil.Process().memory_info().rss / (1 << 20))
        for time_number in range(options.times):
            began = time.monotonic()
            runtime.load(EngineSpec(model=str(options.model), max_model_len=4096))
            runtime.wait_ready(600)
            loaded_s, loaded = time.monotonic() - began, used_mib()
            began = time.monotonic()
            runtime.unload()
            while runtime.status().phase != "empty":
                time.sleep(0.05)
            left = [child for child in psutil.Process().children(recursive=True) if child.pid not in own]
            say(what="unloaded", time=time_number, load_s=loaded_s, unload_s=time.monotonic() - began,
                loaded_mib=loaded, used_mib=used_mib(), processes_left=[child.name() for child in left],
                resident_mib=psutil.Process().memory_info().rss / (1 << 20))  # fmt: skip
        runtime.close()


if __name__ == "__main__":
    main()
