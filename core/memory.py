"""How much memory is in use: of all GPUs where there are some, else RAM of this process and its children."""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import gc
import platform
from collections import deque
from typing import Literal

import psutil

from core import machine
from core.types import MemoryReading

Device = Literal["GPU", "RAM"]
_KEPT = 50


def in_use() -> tuple[Device, int]:
    """What is measured, and its bytes in use now. A few milliseconds a process: not for the loop."""
    gpu_bytes = machine.gpu_bytes_in_use()
    return ("RAM", tree_bytes()) if gpu_bytes is None else ("GPU", gpu_bytes)


def tree_bytes() -> int:
    """RAM of this process and all its descendants; what several share counts once."""
    own = psutil.Process()
    return sum(map(_bytes_of, (own, *own.children(recursive=True))))


def settle() -> None:
    """After a load: what is there now stays for long, and need not be looked through for garbage again.

    A full collection walks through all that vLLM imported, half a second in which no token gets out;
    vLLM's own server does the same.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """To the system, what this process holds and doesn't use: after an engine is gone."""
    gc.unfreeze()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _bytes_of(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended, or is another user's
        memory = process.memory_full_info()
        return getattr(memory, "pss", memory.uss)  # the share of shared pages, where the system tells it
    return 0


class MemoryLog:
    """Memory before and after the last loads and unloads. Safe from any thread."""

    def __init__(self) -> None:
        self._readings: deque[MemoryReading] = deque(maxlen=_KEPT)

    def add(self, event: Literal["load", "unload"], model: str, before_bytes: int) -> None:
        """The event that began with `before_bytes` in use has ended now."""
        device, after_bytes = in_use()
        self._readings.append(
            MemoryReading(
                at=dt.datetime.now(dt.UTC),
                event=event,
                model=model,
                device=device,
                before_bytes=before_bytes,
                after_bytes=after_bytes,
            )
        )

    def readings(self) -> tuple[MemoryReading, ...]:
        """Oldest first."""
        return tuple(self._readings.copy())
