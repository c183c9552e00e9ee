"""What the runtime's watch keeps count of: the engine's speed, and how often it was restarted."""

from __future__ import annotations

import time
import weakref
from collections import deque

from core.engines.base import Engine

RESTART_DELAYS_S = (0.5, 2.0, 8.0)
RESTART_WINDOW_S = 600.0
_READINGS_KEPT = 60


class SpeedMeter:
    """Output tokens/s over the last minute, from readings about a second apart."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=_READINGS_KEPT)
        self._engine: weakref.ref[Engine] | None = None  # an engine that was ended shall leave memory
        self._at = 0.0
        self._tokens = 0

    def sample(self, engine: Engine, now: float) -> None:
        tokens = engine.stats().output_tokens
        if self._engine is not None and engine is self._engine():
            rate = (tokens - self._tokens) / (now - self._at)
            if rate or any(old for _, old in self._readings):
                self._readings.append((now, rate))
            else:  # an idle minute needs no points
                self._readings.clear()
        else:
            self._readings.clear()
        self._engine, self._at, self._tokens = weakref.ref(engine), now, tokens

    def rates(self, now: float) -> tuple[tuple[float, float], ...]:
        """(seconds ago, output tokens/s), oldest first. Safe from any thread."""
        return tuple((now - at, rate) for at, rate in self._readings.copy())


class RestartBudget:
    """At most three restarts in ten minutes, each after a longer wait."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def reset(self) -> None:
        self._times.clear()

    def next_delay_s(self) -> float | None:
        """Take one restart: seconds to wait before it, None when there were too many of late."""
        now = time.monotonic()
        while self._times and now - self._times[0] > RESTART_WINDOW_S:
            self._times.popleft()
        if len(self._times) >= len(RESTART_DELAYS_S):
            return None
        self._times.append(now)
        return RESTART_DELAYS_S[len(self._times) - 1]
