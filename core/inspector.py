"""What the model reads: the prompt's text, its tokens, and what of the conversation did not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import prompt_styles
from core.chat_templates import fit
from core.engines.base import Engine
from core.prompt_styles import Wrapper
from core.types import Message, TokenPiece


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A prompt as the engine gets it.

    `pieces` are its tokens, those included that the tokenizer adds to `text`. `context_tokens` is
    the context's size, of which `answer_tokens` are left for the answer: max_tokens at most.
    `dropped` messages did not fit, oldest first. `template` made the text: the model's own, or the
    wrapper's; None where the contents are all there is, or nobody sees it.

    From an engine without "tokens" there are no `pieces`; where it makes the text of a conversation
    itself, `messages` are what it gets, and `text` is empty.
    """

    text: str
    pieces: tuple[TokenPiece, ...] | None
    context_tokens: int
    answer_tokens: int
    dropped: tuple[Message, ...]
    template: str | None
    messages: tuple[Message, ...] = ()

    @property
    def prompt_tokens(self) -> int | None:
        return None if self.pieces is None else len(self.pieces)


def inspect(
    messages: Sequence[Message],
    engine: Engine,
    max_tokens: int,
    *,
    style: str = prompt_styles.CHAT,
    wrapper: Wrapper | None = None,
    options: Mapping[str, Any] | None = None,
    continued: str = "",
) -> Inspection:
    """Look at the prompt that `core.chat_templates.fit` makes of the same; raises as it does."""
    prompt = fit(
        messages, engine, max_tokens, style=style, wrapper=wrapper, options=options, continued=continued
    )
    context = engine.info.max_model_len
    return Inspection(
        text=prompt.text,
        pieces=None if prompt.token_ids is None else tuple(engine.pieces(prompt.token_ids)),
        context_tokens=context,
        answer_tokens=min(max_tokens, context - (prompt.tokens or 0)),
        dropped=prompt.dropped,
        template=_template(engine, style, wrapper),
        messages=prompt.chat.messages if prompt.chat else (),
    )


def _template(engine: Engine, style: str, wrapper: Wrapper | None) -> str | None:
    if style == prompt_styles.CHAT:
        return engine.chat_template if engine.info.has_chat_template else None
    found = prompt_styles.wrapper_of(style, wrapper)
    return found.system + found.user + found.assistant if found else None
