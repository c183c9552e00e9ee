"""Tokens on a page: an answer coloured by probability, or a text cut where the model's tokens end.

A component of its own, because Streamlit's elements can't colour single tokens of untrusted text or
answer a click without a rerun. Its script writes text through `textContent` only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from core.types import TokenLogprob, TokenPiece

_HERE = Path(__file__).parent
_MOST = 8_000  # tokens drawn of a long text: half from its beginning, half from its end
_component = st.components.v2.component(
    "workbench_token_view",
    html='<div class="root"></div>',
    css=(_HERE / "token_view.css").read_text(encoding="utf-8"),
    js=(_HERE / "token_view.js").read_text(encoding="utf-8"),
)


def token_view(key: str, logprobs: Sequence[TokenLogprob], *, legend: bool = True) -> None:
    """An answer's tokens, the unlikely ones coloured; a click or Enter shows what else could have come."""
    _draw(key, "probability", "Tokens and their probabilities", [_chosen(one) for one in logprobs], legend)


def token_pieces(key: str, pieces: Sequence[TokenPiece], *, legend: bool = True) -> None:
    """A text token by token, special tokens marked; the id shows on hover, a click or Enter."""
    tokens = [[piece.text, piece.token_id, None, None, [], piece.special] for piece in pieces]
    _draw(key, "pieces", "Tokens of the text", tokens, legend)


def _draw(key: str, kind: str, label: str, tokens: list[list[Any]], legend: bool) -> None:
    data: dict[str, Any] = {"kind": kind, "label": label, "legend": legend, "tokens": tokens}
    left_out = len(tokens) - _MOST
    if left_out > 0:
        data["tokens"] = tokens[: _MOST // 2] + tokens[-(_MOST // 2) :]
        words = f"… {left_out:,} tokens between are not shown …"
        data["gap"] = {"at": _MOST // 2, "left_out": left_out, "text": words}
    _component(key=key, data=data)


def _chosen(token: TokenLogprob) -> list[Any]:
    return [*_entry(token), [_entry(other) for other in token.alternatives], False]


def _entry(token: TokenLogprob) -> list[Any]:
    """Text, id, probability (to 6 places: it is sent to the browser for every token), place."""
    return [token.text, token.token_id, round(math.exp(min(token.logprob, 0.0)), 6), token.rank]
