"""What the device itself gives: bytes a second from memory, FLOP a second. Measured once, and kept.

Measured by `core.bench.device_rates_worker` in a process of its own, on the processors that the engine
computes with, or on the first GPU. Kept in the workspace, for each device.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.bench import files
from core.engines import choice, cpu_threads
from core.engines.children import faster_libraries
from core.errors import BenchError
from core.runtime import Runtime
from core.settings import Settings

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 180.0
_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """`device`: its name. `bandwidth`: bytes/s, the better of copying (read and written bytes counted) and
    reading. `flops`: FLOP/s of large matrices by number format. `measured_at`: ISO 8601, UTC.
    """

    device: str
    bandwidth: float
    copy_bandwidth: float
    read_bandwidth: float
    flops: Mapping[str, float]
    measured_at: str

    def flops_of(self, dtype: str) -> float:
        """What matrices of `dtype` can be multiplied with; any fits into float32 without loss."""
        return max(self.flops.get(dtype, 0.0), self.flops["float32"])


def device_of(environment: Mapping[str, Any]) -> str | None:
    """The device that a benchmark's engine computed on, with its threads; None where none is known.

    `environment`: as `core.bench.files` writes it.
    """
    gpus, cpu = environment.get("gpus") or (), environment.get("cpu")
    if environment.get("engine") in (None, "openai", "scripted"):
        return None
    if gpus and not str(environment.get("device", "")).startswith("CPU"):
        return str(gpus[0])
    threads = _threads(environment)
    return f"{cpu}, {threads} thread{'s' * (threads != 1)}" if cpu else None


def kept(settings: Settings, device: str) -> DeviceRates | None:
    """What was measured of this device, None when nothing was."""
    found = _read(settings).get(device)
    try:
        return None if found is None else DeviceRates(**found)
    except TypeError:  # another version kept it
        return None


def measure(runtime: Runtime) -> DeviceRates:
    """Measure the device of the engine that is loaded, and keep it. Blocks for about 20 s.

    Raises BenchError while the engine is at work: each would slow the other, and both figures be wrong;
    EngineNotReady without an engine.
    """
    engine, here = runtime.engine, choice.this_machine()
    environment = files.environment(engine.info, engine.spec, here)
    device = device_of(environment)
    if device is None:
        raise BenchError("This engine computes elsewhere: its device can't be measured from here.")
    busy = runtime.in_use()
    if busy:
        raise BenchError(
            f"The engine is at work ({', '.join(busy)}), and would falsify the figures.",
            hint="Wait until it is done, or stop it.",
        )
    on_gpu = device in {gpu.name for gpu in here.gpus}
    wanted = None if on_gpu else _threads(environment)
    dtypes = _DTYPES if on_gpu else tuple(dict.fromkeys((_format(engine.info.dtype), "float32")))
    found = _run({"dtypes": dtypes, "processors": cpu_threads.processors(wanted) if wanted else ()})
    if runtime.in_use():
        raise BenchError("The engine was used meanwhile: the figures are worth nothing.", hint="Try again.")
    before = kept(runtime.settings, device)
    rates = DeviceRates(
        device=device,
        bandwidth=max(found["bandwidth"], found["read"]),
        copy_bandwidth=found["bandwidth"],
        read_bandwidth=found["read"],
        flops={**(before.flops if before else {}), **found["flops"]},
        measured_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    _keep(runtime.settings, rates)
    return rates


def _threads(environment: Mapping[str, Any]) -> int:
    settings = environment.get("settings") or {}
    return int(settings.get("cpu_threads") or environment.get("physical_cores") or 1)


def _format(dtype: str) -> str:
    return dtype if dtype in _DTYPES else "float32"


def _run(request: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's answer. Raises BenchError with its own last line."""
    environment = {**os.environ, **faster_libraries()}
    if request["processors"]:
        environment["OMP_NUM_THREADS"] = str(len(request["processors"]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "core.bench.device_rates_worker", json.dumps(request)],
            capture_output=True,
            text=True,
            cwd=_ROOT,
            env=environment,
            timeout=_PATIENCE_S,
            check=False,
            start_new_session=True,
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise BenchError(
            f"The device could not be measured in {_PATIENCE_S:.0f} s.", hint="Is the machine busy?"
        ) from error
    except ValueError as error:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"exit code {done.returncode}"
        hint = "Unload the engine, and try again." if "memory" in reason else ""
        raise BenchError(f"The device could not be measured: {reason}", hint=hint) from error


def _path(settings: Settings) -> Path:
    return settings.home / "device_rates.json"


def _read(settings: Settings) -> dict[str, Any]:
    try:
        found = json.loads(_path(settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing was measured yet, or the file is damaged: measured anew
        return {}
    return found if isinstance(found, dict) else {}


def _keep(settings: Settings, rates: DeviceRates) -> None:
    """Written beside the file and put in its place, so that no reader sees half of it."""
    path = _path(settings)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        json.dump({**_read(settings), rates.device: asdict(rates)}, file, indent=1)
    Path(file.name).replace(path)
