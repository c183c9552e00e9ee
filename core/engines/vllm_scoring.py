"""How likely each of some answers is: what to ask the engine for, and the sums. Pure; logarithms are natural.

The answers' tokens are laid over each other as a tree. Each inner node is one question: after the
prompt and this node's tokens, how likely is each token that goes on from here?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Tokens = tuple[int, ...]


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
