"""An estimate beside what the engine reports once it is loaded: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.models.fit import Fit
from core.types import EngineInfo


@dataclass(frozen=True, slots=True)
class Difference:
    """One part of an estimate against what the engine reports. `share`: +0.01 is one percent more."""

    part: str
    unit: Literal["bytes", "tokens"]
    estimated: int
    reported: int

    @property
    def share(self) -> float:
        return self.reported / self.estimated - 1 if self.estimated else 0.0


def compare(fit: Fit, info: EngineInfo) -> tuple[Difference, ...]:
    """The estimate of what was loaded against the engine's report, part by part; only parts it reports."""
    copies = fit.spec.data_parallel_size or 1
    both = (
        ("Weights", "bytes", fit.weights_bytes * max(1, fit.devices_used), info.weights_bytes),
        ("KV cache", "tokens", fit.kv_cache_tokens * copies, info.kv_cache_tokens),
        ("Context", "tokens", fit.context_tokens, info.max_model_len),
    )
    return tuple(
        Difference(part, unit, estimated, reported)
        for part, unit, estimated, reported in both
        if estimated and reported
    )
