"""Run by test_load_cycles in a process of its own: what ten loads and unloads of the real engine leave.

    python tests/load_cycles.py MODEL CYCLES

Prints JSON: {"after": RAM in bytes of this process and its children after each unload,
"processes": children that are left, "readings": [[event, bytes before, bytes after], ...]}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from core import memory
from core.runtime import Runtime
from core.settings import load_settings
from core.types import EngineSpec, Request


def main(model: str, cycles: int) -> None:
    spec = EngineSpec(
        model=model, max_model_len=256, max_num_seqs=2, max_num_batched_tokens=64,
        kv_cache_memory_bytes=16 << 20,
    )  # fmt: skip
    runtime = Runtime(load_settings())
    after = []
    try:
        for number in range(cycles):
            runtime.load(spec)
            engine = runtime.wait_ready(280)
            request = Request(id=f"{number}", prompt="One, two,", params={"max_tokens": 2})
            runtime.run(engine.complete(request))
            del engine
            runtime.unload()
            while (status := runtime.status()).phase != "empty":
                if status.phase == "failed":
                    raise SystemExit(f"unloading failed: {status}")
                time.sleep(0.02)
            after.append(memory.tree_bytes())
            print("unloaded", number, file=sys.stderr)
        readings = [(each.event, each.before_bytes, each.after_bytes) for each in runtime.memory_readings()]
        processes = [child.name() for child in psutil.Process().children(recursive=True)]
    finally:
        runtime.close()
    print(json.dumps({"after": after, "processes": processes, "readings": readings}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
