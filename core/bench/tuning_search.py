"""Which settings are tried, in what order: one at a time from the best so far, further where it helped. Pure.

Coordinate descent: each trial loads the model anew, which takes longer than to measure it, so a grid
over six settings is out of reach, and settings of an engine mostly act apart from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.machine import Machine
from core.types import EngineInfo, EngineSpec

Changes = Mapping[str, Any]
SETTINGS: tuple[str, ...] = (
    "cpu_threads",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "enable_prefix_caching",
    "block_size",
    "kv_cache_dtype",
)
"""Those that can be searched, the ones that mostly matter first."""
CHANGES_ANSWERS = ("kv_cache_dtype",)
"""Settings that also change what the model answers, if little."""
_STEPS = 4
_LEAST_STEP_TOKENS = 64
_CPU_BLOCKS, _GPU_BLOCKS = (32, 64, 128), (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting. `values` in order, `values[start]` is in force now. `is_scale`: neighbours act alike."""

    name: str
    values: tuple[Any, ...]
    start: int
    is_scale: bool


def axes(names: Sequence[str], spec: EngineSpec, info: EngineInfo, here: Machine) -> tuple[Axis, ...]:
    """The settings of `names` that have another value to try here, in the order of SETTINGS."""
    found = []
    for name in SETTINGS:
        if name in names:
            values, now, is_scale = _values(name, spec, info, here)
            kept = tuple(dict.fromkeys(values))
            if now in kept and len(kept) > 1:
                found.append(Axis(name, kept, kept.index(now), is_scale))
    return tuple(found)


def climb(axes: Sequence[Axis], try_: Callable[[Changes], bool]) -> Changes:
    """Try values until no setting helps any more; gives the changes that were best.

    `try_` is asked with all changes from the start, and says whether they are better than the best so
    far: they are the best then. What it raises ends the search.
    """
    best: dict[str, Any] = {}
    tried = {_key({})}

    def attempt(axis: Axis, value: Any) -> bool:
        nonlocal best
        changes = {name: kept for name, kept in best.items() if name != axis.name}
        if value != axis.values[axis.start]:
            changes[axis.name] = value
        if _key(changes) in tried:
            return False
        tried.add(_key(changes))
        if not try_(changes):
            return False
        best = changes
        return True

    helped = True
    while helped:
        helped = False
        for axis in axes:
            now = axis.values.index(best.get(axis.name, axis.values[axis.start]))
            helped |= _along(axis, now, attempt)
    return best


def _along(axis: Axis, now: int, attempt: Callable[[Axis, Any], bool]) -> bool:
    """On a scale upwards while it helps, else downwards; otherwise every other value."""
    if not axis.is_scale:
        helped = False
        for place, value in enumerate(axis.values):  # all of them: the last may be the best
            helped |= place != now and attempt(axis, value)
        return helped
    for step in (1, -1):
        place, helped = now, False
        while 0 <= place + step < len(axis.values) and attempt(axis, axis.values[place + step]):
            place, helped = place + step, True
        if helped:
            return True
    return False


def _key(changes: Changes) -> frozenset[tuple[str, Any]]:
    return frozenset(changes.items())


def _values(name: str, spec: EngineSpec, info: EngineInfo, here: Machine) -> tuple[list[Any], Any, bool]:
    """(values in order, the one in force, whether they are a scale)."""
    now = getattr(spec, name)
    in_force = now if now is not None else info.settings.get(name)
    match name:
        case "max_num_seqs":
            slots = now or max(1, info.batch_slots // (spec.data_parallel_size or 1))
            return _doubled(slots, 1, 16_384), slots, True
        case "max_num_batched_tokens":
            least = max(_LEAST_STEP_TOKENS, info.max_num_seqs)
            return (_doubled(in_force, least, 1 << 17) if in_force else []), in_force, True
        case "cpu_threads":
            threads = in_force or here.physical_cores
            counts = {1, max(1, here.physical_cores // 2), max(1, here.physical_cores - 1)}
            counts |= {threads, here.physical_cores, here.cores}
            return ([] if here.gpus else sorted(counts)), threads, True
        case "block_size":
            blocks = _GPU_BLOCKS if here.gpus else _CPU_BLOCKS
            return list(blocks), in_force or (16 if here.gpus else 32), True
        case "kv_cache_dtype":
            return ["auto", "fp8"], now or "auto", False
        case "enable_prefix_caching":
            return [True, False], in_force is not False, False
        case _:  # enforce_eager
            return [True, False], bool(in_force), False


def _doubled(now: int, least: int, most: int) -> list[int]:
    """`now`, halved and doubled up to four times each."""
    found = {now}
    for step in range(1, _STEPS + 1):
        found |= {value for value in (now // 2**step, now * 2**step) if least <= value <= most}
    return sorted(found)
