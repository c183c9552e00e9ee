"""A conversation -> the prompt an engine takes, cut to its context where the engine tells its tokens."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import prompt_styles
from core.engines.base import Engine
from core.errors import RequestRejected
from core.prompt_styles import Wrapper
from core.prompts import plain_text
from core.types import ChatPrompt, Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrompt:
    """`token_ids` as the engine gets them, `text` what they say; `dropped` did not fit, oldest first.

    From an engine without "tokens" nobody has them: `token_ids` is None. It gets `chat` then, the
    messages that it renders itself (`text` is empty), or else the text.
    """

    token_ids: tuple[int, ...] | None
    text: str
    dropped: tuple[Message, ...] = ()
    chat: ChatPrompt | None = None

    @property
    def prompt(self) -> Prompt:
        """What the engine gets."""
        if self.token_ids is not None:
            return self.token_ids
        return self.text if self.chat is None else self.chat

    @property
    def tokens(self) -> int | None:
        return None if self.token_ids is None else len(self.token_ids)

    @property
    def dropped_turns(self) -> int:
        return len(self.dropped)


def fit(
    messages: Sequence[Message],
    engine: Engine,
    max_tokens: int,
    *,
    style: str = prompt_styles.CHAT,
    wrapper: Wrapper | None = None,
    options: Mapping[str, Any] | None = None,
    continued: str = "",
) -> FittedPrompt:
    """The system prompt and as many of the newest turns as leave room for the answer.

    Turns are dropped from the oldest on, up to the next user message, because
    many templates insist that the user speaks first. Room for the answer is
    `max_tokens`, at most half the context: a large max_tokens must not cost the
    whole memory of the conversation. The newest message stays in any case;
    its answer may then be cut by the context. For an engine without "tokens" nothing is
    dropped: it refuses what is too long.

    `style` and `wrapper` are those of `core.prompt_styles`, `options` further variables of
    the model's chat template. `continued` is the beginning of the answer: the model goes on from there.

    Raises RequestRejected when the newest message alone does not fit, TemplateError
    when the model's template refuses the messages or there is no such style.
    """
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    starts = [index for index, message in enumerate(turns) if message.role == "user"]
    if not starts:
        raise RequestRejected("There is no message to answer.", hint="Write one.")
    if "tokens" in engine.info.cannot:
        return _uncounted(messages, engine, style, wrapper, options, continued)
    context = engine.info.max_model_len
    budget = context - min(max_tokens, context // 2)
    made: dict[int, FittedPrompt] = {}

    def prompt_from(start: int) -> FittedPrompt:
        if start not in made:
            text, add_special_tokens = _render([*system, *turns[start:]], engine, style, wrapper, options)
            text += continued
            (token_ids,) = engine.encode([text], add_special_tokens=add_special_tokens)
            made[start] = FittedPrompt(token_ids=tuple(token_ids), text=text, dropped=tuple(turns[:start]))
        return made[start]

    # the fewer turns, the shorter the prompt: bisect instead of encoding a long chat once per turn
    found = bisect.bisect_left(starts, True, key=lambda start: prompt_from(start).tokens <= budget)
    prompt = prompt_from(starts[min(found, len(starts) - 1)])
    if prompt.tokens >= context:
        what = "the answer so far and the system prompt" if continued else "the system prompt"
        raise RequestRejected(
            f"The message is too long: with {what} it has {prompt.tokens} tokens, "
            f"the context holds {context}, the answer included.",
            hint="Shorten it, or load the model with a larger context.",
        )
    return prompt


def _uncounted(
    messages: Sequence[Message],
    engine: Engine,
    style: str,
    wrapper: Wrapper | None,
    options: Mapping[str, Any] | None,
    continued: str,
) -> FittedPrompt:
    if style != prompt_styles.CHAT or not engine.info.has_chat_template:
        text, _add_special_tokens = _render(messages, engine, style, wrapper, options)
        return FittedPrompt(token_ids=None, text=text + continued)
    if continued:
        raise RequestRejected(
            "This engine begins each answer anew: it can't go on with one.", hint="Regenerate it instead."
        )
    return FittedPrompt(token_ids=None, text="", chat=ChatPrompt(tuple(messages), dict(options or {})))


def _render(
    messages: Sequence[Message],
    engine: Engine,
    style: str,
    wrapper: Wrapper | None,
    options: Mapping[str, Any] | None,
) -> tuple[str, bool]:
    """The prompt's text, and whether the tokenizer shall add its own special tokens."""
    if style == prompt_styles.CHAT:
        if not engine.info.has_chat_template:
            return plain_text(messages), True
        # the template writes the special tokens itself
        return engine.render_chat([messages], options)[0], False
    found = prompt_styles.wrapper_of(style, wrapper)
    text = found.render(messages) if found else "".join(message.content for message in messages)
    return text, True
