"""A conversation -> the prompt an engine takes, cut to its context."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from core.engines.base import Engine
from core.errors import RequestRejected
from core.prompts import plain_text
from core.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrompt:
    """`token_ids` as the engine gets them; `dropped_turns` messages at the start did not fit."""

    token_ids: tuple[int, ...]
    dropped_turns: int

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


def fit(messages: Sequence[Message], engine: Engine, max_tokens: int) -> FittedPrompt:
    """The system prompt and as many of the newest turns as leave room for the answer.

    Turns are dropped from the oldest on, up to the next user message, because
    many templates insist that the user speaks first. Room for the answer is
    `max_tokens`, at most half the context: a large max_tokens must not cost the
    whole memory of the conversation. The newest message stays in any case;
    its answer may then be cut by the context.

    Raises RequestRejected when the newest message alone does not fit, TemplateError
    when the model's template refuses the messages.
    """
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    starts = [index for index, message in enumerate(turns) if message.role == "user"]
    if not starts:
        raise RequestRejected("There is no message to answer.", hint="Write one.")
    context = engine.info.max_model_len
    budget = context - min(max_tokens, context // 2)
    encoded: dict[int, tuple[int, ...]] = {}

    def fits(start: int) -> bool:
        encoded[start] = _encode([*system, *turns[start:]], engine)
        return len(encoded[start]) <= budget

    # the fewer turns, the shorter the prompt: bisect instead of encoding a long chat once per turn
    found = bisect.bisect_left(starts, True, key=fits)
    start = starts[min(found, len(starts) - 1)]
    token_ids = encoded.get(start) or _encode([*system, *turns[start:]], engine)
    if len(token_ids) >= context:
        raise RequestRejected(
            f"The message is too long: with the system prompt it has {len(token_ids)} tokens, "
            f"the context holds {context}, the answer included.",
            hint="Shorten it, or load the model with a larger context.",
        )
    return FittedPrompt(token_ids=token_ids, dropped_turns=start)


def _encode(messages: Sequence[Message], engine: Engine) -> tuple[int, ...]:
    if engine.info.has_chat_template:
        # the template writes the special tokens itself
        return tuple(engine.encode(engine.render_chat([messages]))[0])
    return tuple(engine.encode([plain_text(messages)], add_special_tokens=True)[0])
