"""One prepared row to its result: every turn, every sample, validity and probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core import structured
from core.engines.base import Engine
from core.errors import RequestRejected
from core.requests import Item
from core.results import Result
from core.types import Completion, Priority, Request

Follow = Callable[[Item, str], Awaitable[Item | Result]]
# what belongs to the answer that is kept, not to the turns on the way there
_LAST_TURN_ONLY = ("structured_outputs", "n", "logprobs")


@dataclass(slots=True)
class Work:
    """What was sent to the engine and came back, added up. Read from any thread."""

    generated: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def add(self, completion: Completion) -> None:
        self.prompt_tokens += completion.prompt_tokens
        self.output_tokens += completion.output_tokens
        self.cached_tokens += completion.cached_tokens or 0


@dataclass(slots=True)
class _Talk:
    """What one row has got so far."""

    completions: list[Completion] = field(default_factory=list)

    @property
    def answers(self) -> list[str]:
        return [completion.text for completion in self.completions]

    def total(self, name: str) -> int | None:
        counts = [getattr(completion, name) for completion in self.completions]
        return None if None in counts or not counts else sum(counts)


class Answerer:
    """Asks the engine for rows of one run. `follow` prepares a row's next turn."""

    def __init__(self, run_id: str, follow: Follow, *, choice_probabilities: bool) -> None:
        self.work = Work()
        self._run_id = run_id
        self._follow = follow
        self._choice_probabilities = choice_probabilities

    async def answer(self, item: Item, engine: Engine) -> Result:
        """The row's result: an error result when the engine refuses it. Raises EngineDied."""
        talk = _Talk()
        several = bool(item.turns)
        try:
            while True:
                request = self._request(item, len(talk.completions))
                self.work.generated += 1
                completion = await engine.complete(request)
                self.work.add(completion)
                talk.completions.append(completion)
                if not item.turns:
                    break
                following = await self._follow(item, completion.text)
                if isinstance(following, Result):
                    raise RequestRejected(f"Turn {len(talk.completions) + 1}: {following.error}")
                item = following
            chances = await self._chances(item, request, engine)
        except RequestRejected as error:
            return _result(item, talk, several, status="error", error=str(error))
        return _result(item, talk, several, status="ok", error=None, chances=chances)

    def _request(self, item: Item, turn: int) -> Request:
        params = item.params
        if item.turns:
            params = {name: value for name, value in params.items() if name not in _LAST_TURN_ONLY}
        suffix = f"-{turn}" if turn else ""
        return Request(
            id=f"{self._run_id}-{item.row}{suffix}",
            prompt=item.prompt,
            params=params,
            priority=Priority.BATCH,
            adapter=item.adapter,
        )

    async def _chances(self, item: Item, request: Request, engine: Engine) -> str | None:
        """JSON of each choice's probability among the choices, or None where it is not asked for."""
        choices = item.params.get("structured_outputs", {}).get("choice")
        if not self._choice_probabilities or not choices:
            return None
        scores = await engine.score(request, choices)
        return json.dumps(dict(zip(choices, softmax(scores), strict=True)), ensure_ascii=False)


def softmax(log_probabilities: Sequence[float]) -> list[float]:
    """Probabilities that add up to 1 from logarithms, the largest taken out first against underflow."""
    highest = max(log_probabilities)
    weights = [math.exp(value - highest) for value in log_probabilities]
    return [weight / sum(weights) for weight in weights]


def _result(
    item: Item, talk: _Talk, several: bool, *, status: Any, error: str | None, chances: str | None = None
) -> Result:
    last = talk.completions[-1] if talk.completions else None
    kept = last if status == "ok" else None
    asked = item.params.get("structured_outputs")
    return Result(
        row=item.row,
        status=status,
        answer=kept.text if kept else None,
        error=error,
        finish_reason=kept.finish_reason if kept else None,
        prompt_tokens=talk.total("prompt_tokens"),
        output_tokens=talk.total("output_tokens"),
        cached_tokens=talk.total("cached_tokens"),
        ttft_s=talk.completions[0].timing.ttft_s if talk.completions else None,
        e2el_s=_duration(talk),
        request_key=item.key,
        truncated_tokens=item.truncated_tokens,
        logprob=kept.cumulative_logprob if kept else None,
        answer_tokens=_own_tokens(kept) if kept else None,
        samples=_samples(kept, asked) if kept else None,
        turns=json.dumps(talk.answers, ensure_ascii=False) if several else None,
        choice_probabilities=chances,
        valid=structured.valid(asked, kept.text) if kept and asked else None,
    )


def _own_tokens(completion: Completion) -> int:
    """Of the answer that is kept, without the other samples."""
    return completion.samples[0].output_tokens if completion.samples else completion.output_tokens


def _duration(talk: _Talk) -> float | None:
    if not talk.completions:
        return None
    first, last = talk.completions[0].timing, talk.completions[-1].timing
    return None if last.last_token_s is None else last.last_token_s - first.sent_s


def _samples(completion: Completion, asked: Mapping[str, Any] | None) -> str | None:
    if not completion.samples:
        return None
    samples = [
        {
            "text": sample.text,
            "finish_reason": sample.finish_reason,
            "output_tokens": sample.output_tokens,
            "logprob": sample.cumulative_logprob,
            "valid": structured.valid(asked, sample.text) if asked else None,
        }
        for sample in completion.samples
    ]
    return json.dumps(samples, ensure_ascii=False)
