"""How likely given answers are, by a vLLM server: the log-probabilities of a prompt's own last tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.engines.openai_client import Server
from core.errors import EngineError, RequestRejected

_AT_ONCE = 16


async def scores(
    server: Server, model: str, prompt: Sequence[int], answers: Sequence[Sequence[int]], end_id: int | None
) -> list[float]:
    """The natural log-probability of each answer (token ids) after the prompt.

    Where another answer goes on from one, that one's end counts as well: `end_id`. Raises
    RequestRejected, EngineDied.
    """
    asking = asyncio.Semaphore(_AT_ONCE)

    async def one(answer: Sequence[int]) -> float:
        scored = [*answer]
        if any(len(other) > len(answer) and list(other[: len(answer)]) == scored for other in answers):
            if end_id is None:
                raise RequestRejected(
                    "One choice begins with another, and nobody knows the token that would end it.",
                    hint="Give choices of which none goes on from another.",
                )
            scored.append(end_id)
        body = {
            "model": model,
            "prompt": [*prompt, *scored],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        async with asking:
            reply = await server.post("/completions", body)
        return math.fsum(last_logprobs(reply, scored))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(answer)) for answer in answers]
    except BaseExceptionGroup as failures:
        raise _first(failures) from failures  # the others met the same
    return [task.result() for task in tasks]


def last_logprobs(reply: Mapping[str, Any], scored: Sequence[int]) -> list[float]:
    """Those of the tokens that the prompt ended with. Raises RequestRejected where they are not there."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    places = choice.get("prompt_logprobs") if isinstance(choice, dict) else None
    try:
        values = [
            float(place[str(token)]["logprob"])
            for token, place in zip(scored, places[-len(scored) :], strict=True)
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise RequestRejected("The server gave no probabilities of the choices.") from error
    return values


def _first(failures: BaseExceptionGroup) -> BaseException:
    ours = [error for error in failures.exceptions if isinstance(error, EngineError)]
    return (ours or failures.exceptions)[0]
