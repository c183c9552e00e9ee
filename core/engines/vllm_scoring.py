"""How likely each of some answers is: what to ask the engine for, and the sums. Logarithms are natural.

The answers' tokens are laid over each other as a tree. Each inner node is one question: after the
prompt and this node's tokens, how likely is each token that goes on from here?
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from core.errors import RequestRejected

Tokens = tuple[int, ...]


async def score(
    answers: Sequence[Tokens],
    end_ids: Sequence[int],
    ask: Callable[[Tokens, Tokens], Awaitable[Mapping[int, float]]],
) -> list[float]:
    """The log-probability of each answer. `ask(node, tokens)`: that of each token next after the node's.

    `end_ids` are the tokens that end an answer. Raises what `ask` raises.
    """
    (root, tokens), *others = questions(answers, end_ids).items()
    # the root goes first: its prompt is in the prefix cache then, for all that go on from it
    found = {root: await ask(root, tokens)}
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {node: group.create_task(ask(node, tokens)) for node, tokens in others}
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures  # the others met the same
    found |= {node: task.result() for node, task in tasks.items()}
    return sums(answers, end_ids, found)


def check(answers: Sequence[Tokens], prompt_tokens: int, context_tokens: int) -> None:
    """Raises RequestRejected for answers that are empty or don't fit."""
    if not answers or not all(answers):
        raise RequestRejected("A choice is empty, or there is none.", hint="Give choices with text.")
    longest = prompt_tokens + max(map(len, answers))
    if longest >= context_tokens:
        raise RequestRejected(
            f"The prompt and the longest choice have {longest} tokens; the context holds {context_tokens}.",
            hint="Shorten the prompt.",
        )


def questions(answers: Sequence[Tokens], end_ids: Sequence[int]) -> dict[Tokens, Tokens]:
    """For each inner node, given by the tokens that lead to it, the tokens to ask for; the root is first.

    Where one answer ends and another goes on, the tokens that would end it are asked for as well.
    """
    asked: dict[Tokens, dict[int, None]] = {}
    for answer in answers:
        for length in range(len(answer)):
            asked.setdefault(answer[:length], {})[answer[length]] = None
    for answer in answers:
        if answer in asked:
            asked[answer].update(dict.fromkeys(end_ids))
    return {node: tuple(tokens) for node, tokens in sorted(asked.items(), key=lambda item: len(item[0]))}


def sums(
    answers: Sequence[Tokens], end_ids: Sequence[int], found: Mapping[Tokens, Mapping[int, float]]
) -> list[float]:
    """The log-probability of each answer. `found`: for each node asked for, that of its tokens."""
    totals = []
    for answer in answers:
        total = math.fsum(found[answer[:length]][answer[length]] for length in range(len(answer)))
        if answer in found:
            ends = math.fsum(math.exp(found[answer][end]) for end in end_ids)
            total += math.log(ends) if ends else -math.inf
        totals.append(total)
    return totals
