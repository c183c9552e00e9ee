"""What a comparison will take, from what this model's answers took before. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.comparing.spec import ComparisonSpec
from core.sampling import BY_NAME
from core.store import RunRecord
from core.types import EngineInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a stretch of work took: tokens of its answers, seconds, answers in flight at once.

    `max_tokens` is the mean limit of its answers, `cut` the share that ended there.
    """

    model: str
    answers: int
    output_tokens: int
    seconds: float
    at_once: int
    max_tokens: float
    cut: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a comparison will take. `is_bound`: answers may be shorter than counted.

    `seconds` is None until this model's speed has been measured.
    """

    generations: int
    output_tokens: int
    seconds: float | None
    is_bound: bool


def estimate(
    spec: ComparisonSpec, info: EngineInfo | None, measured: Sequence[Measured], runs: Sequence[RunRecord]
) -> Estimate:
    """From the newest comparison of this model, or the speed of its newest batch run.

    Fewer answers than were in flight when the speed was measured go slower in proportion: the engine
    is not full then. Answers that were cut go on to a higher limit.
    """
    known = [one for one in measured if info and one.model == info.model and one.answers]
    limits = [max_tokens_of(one.params) for one in spec.sets]
    lengths = [_length(limit, known[0]) for limit in limits] if known else limits
    tokens = round(sum(lengths) * len(spec.prompts) * len(spec.seeds))
    speed = _speed(spec.answers, info, known, runs)
    return Estimate(
        generations=spec.answers,
        output_tokens=tokens,
        seconds=tokens / speed if speed else None,
        is_bound=not known,
    )


def max_tokens_of(params: dict[str, object]) -> int:
    """The limit in force where none is given, too."""
    return params.get("max_tokens", BY_NAME["max_tokens"].default)


def _length(limit: int, before: Measured) -> float:
    mean = before.output_tokens / before.answers
    return min(limit, mean + before.cut * max(0, limit - before.max_tokens))


def _speed(
    answers: int, info: EngineInfo | None, known: Sequence[Measured], runs: Sequence[RunRecord]
) -> float | None:
    """Output tokens a second, all answers together."""
    found = [(one.output_tokens / one.seconds, one.at_once) for one in known if one.seconds > 0]
    found += [
        (run.output_tokens / run.wall_s, min(run.ok, info.batch_slots))
        for run in runs
        if info and run.model == info.model and run.wall_s > 0 and run.ok
    ]
    if not found:
        return None
    speed, at_once = found[0]
    return speed * min(1.0, answers / max(1, at_once))
