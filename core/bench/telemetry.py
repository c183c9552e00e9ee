"""The engine and the device while a point is measured: looked at from a thread of its own.

The engine's loop does nothing for it: a sample takes milliseconds, in which tokens would wait.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from core import machine
from core.bench.records import EngineSample
from core.types import EngineStats

SAMPLE_EVERY_S = 0.25
_MOST_SAMPLES = 2400  # ten minutes; longer points are looked at less often
_LOOK_FOR_CHILDREN_S = 5.0


class Sampler:
    """Samples from `start` to `stop`. `samples` may be read at any time, from any thread."""

    def __init__(self, stats: Callable[[], EngineStats], began_s: float) -> None:
        """`began_s`: the point's start, on `time.monotonic()`."""
        self._stats = stats
        self._began = began_s
        self._first = stats()
        self._every_s = SAMPLE_EVERY_S
        self._samples: list[EngineSample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name="bench-sampler", daemon=True)

    @property
    def samples(self) -> tuple[EngineSample, ...]:
        return tuple(self._samples)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no more; safe to call twice. Doesn't wait for the sample under way."""
        self._ended.set()

    def _main(self) -> None:
        processes = _Processes()
        with _gpus() as gpus:
            while not self._ended.wait(self._every_s):
                sample = self._take(processes, gpus)
                if self._ended.is_set():  # it was under way when the point ended
                    return
                self._samples.append(sample)
                if len(self._samples) >= _MOST_SAMPLES:
                    self._samples = self._samples[1::2]
                    self._every_s *= 2

    def _take(self, processes: _Processes, gpus: _Gpus) -> EngineSample:
        stats, first = self._stats(), self._first
        cpu_percent, ram_bytes = processes.read()
        gpu_percent, gpu_memory_bytes, power_w = gpus.read()
        return EngineSample(
            at_s=time.monotonic() - self._began,
            output_tokens=stats.output_tokens - first.output_tokens,
            prompt_tokens=stats.prompt_tokens - first.prompt_tokens,
            running=stats.running,
            waiting=stats.waiting,
            kv_cache_usage=stats.kv_cache_usage,
            prefix_queries=stats.prefix_queries - first.prefix_queries,
            prefix_hits=stats.prefix_hits - first.prefix_hits,
            cpu_percent=cpu_percent,
            ram_bytes=ram_bytes,
            gpu_percent=gpu_percent,
            gpu_memory_bytes=gpu_memory_bytes,
            power_w=power_w,
        )


class _Processes:
    """This process and its children, among them the engine's."""

    def __init__(self) -> None:
        self._this = psutil.Process()
        self._found: list[psutil.Process] = []
        self._looked_at = -_LOOK_FOR_CHILDREN_S
        self._before: dict[int, float] = {}
        self._read_at = 0.0
        self.read()  # CPU time is a difference: the first reading has none

    def read(self) -> tuple[float | None, int]:
        """CPU in percent of one core since the last reading, and resident memory in bytes.

        Memory that processes share counts once for each of them.
        """
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_FOR_CHILDREN_S:
            self._found = [self._this, *self._this.children(recursive=True)]
            self._looked_at = now
        seconds, resident = {}, 0
        for process in self._found:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended since
                times = process.cpu_times()
                resident += process.memory_info().rss
                seconds[process.pid] = times.user + times.system
        # one that is new or gone counts nothing, rather than all it ever used
        used = sum(value - self._before[pid] for pid, value in seconds.items() if pid in self._before)
        wall = now - self._read_at
        percent = 100 * used / wall if self._before and wall > 0 else None
        self._before, self._read_at = seconds, now
        return percent, resident


class _Gpus:
    """All NVIDIA devices that this process may use."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def read(self) -> tuple[float | None, int | None, float | None]:
        """The busiest one's use in percent; memory in use in bytes and power in watts of all together.

        None where there is no device, or it doesn't tell.
        """
        import pynvml

        busy = [_told(lambda one: pynvml.nvmlDeviceGetUtilizationRates(one).gpu, h) for h in self._handles]
        memory = [_told(lambda one: pynvml.nvmlDeviceGetMemoryInfo(one).used, h) for h in self._handles]
        power = [_told(pynvml.nvmlDeviceGetPowerUsage, h) for h in self._handles]
        return (
            float(max(busy)) if busy and None not in busy else None,
            int(sum(memory)) if memory and None not in memory else None,
            sum(power) / 1000 if power and None not in power else None,
        )


def _told(ask: Callable[[Any], Any], handle: Any) -> Any:
    import pynvml

    try:
        return ask(handle)
    except pynvml.NVMLError:  # this device doesn't tell: virtual and shared-memory ones
        return None


@contextlib.contextmanager
def _gpus() -> Iterator[_Gpus]:
    with machine.gpu_handles() as handles:
        yield _Gpus(handles)
