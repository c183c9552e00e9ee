"""The scripted engine's tokens: how a text is cut into them, their ids, how likely each is. Pure.

A token is a word with the space before it. Its id is its bytes read as one number, so that there is no
vocabulary to keep; besides, the ids below `VOCABULARY` are made-up words, for distributions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.types import TokenLogprob, TokenPiece

if TYPE_CHECKING:
    import numpy as np

TOKEN = re.compile(r"\s*\S+|\s+$")
VOCABULARY = 512
_ROLE = re.compile(r"\s*<(system|user|assistant|no-thinking)>")
WORDS = 256
_SYLLABLES = ("ba", "do", "fi", "ga", "ho", "ki", "la", "mi", "no", "pu", "ra", "se", "ti", "vo", "wa", "zu")


def to_id(token: str) -> int:
    return int.from_bytes(b"\x01" + token.encode("utf-8", "surrogatepass"))


def to_text(token_id: int) -> str:
    """Ids from 256 to 511 are single bytes by their nature: what is no character alone reads as U+FFFD."""
    if token_id < WORDS:
        return f" {_SYLLABLES[token_id // 16]}{_SYLLABLES[token_id % 16]}"
    data = token_id.to_bytes((token_id.bit_length() + 7) // 8)[1:]
    return "\ufffd" if len(data) == 1 and data[0] > 127 else data.decode("utf-8", "surrogatepass")


def piece(token_id: int) -> TokenPiece:
    """The marks of the roles stand for a model's control tokens."""
    text = to_text(token_id)
    return TokenPiece(token_id, text, special=_ROLE.fullmatch(text) is not None)


def next_logprobs(prompt: str) -> np.ndarray:
    """A distribution over the ids below VOCABULARY, a few of them likely: float32, (VOCABULARY,)."""
    import numpy as np

    logits = np.random.default_rng(int(digest_of(prompt)[:16], 16)).normal(scale=3, size=VOCABULARY)
    return (logits - np.logaddexp.reduce(logits)).astype(np.float32)


def token_logprobs(tokens: Sequence[str], alternatives: int) -> list[TokenLogprob]:
    """Each token with its `alternatives` likeliest ones: made-up words, the token itself among them."""
    return [_logprob(place, token, alternatives) for place, token in enumerate(tokens)]


def _logprob(place: int, token: str, alternatives: int) -> TokenLogprob:
    mark = digest_of(f"{place}\x00{token}")
    logprob = math.log(0.05 + 0.9 * share(mark))
    chosen = TokenLogprob(to_id(token), token, logprob, 1)
    # the words share what the token leaves over, each with half as much as the one before it
    rest = math.log(-math.expm1(logprob))
    others = []
    for step in range(1, min(max(alternatives, 5), WORDS)):
        word = (int(mark[8:12], 16) + step) % WORDS
        others.append(TokenLogprob(word, to_text(word), rest - step * math.log(2), 1))
    order = sorted([chosen, *others], key=lambda entry: -entry.logprob)
    ranked = [dataclasses.replace(entry, rank=rank) for rank, entry in enumerate(order, 1)]
    return dataclasses.replace(ranked[order.index(chosen)], alternatives=tuple(ranked[:alternatives]))


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def share(digest: str) -> float:
    """From 0 up to 1."""
    return int(digest[:8], 16) / 2**32
