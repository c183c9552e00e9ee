"""How a conversation becomes the text that the model reads.

A style is "chat" (the model's own chat template), "completion" (the contents one
after the other, nothing added) or the name of a `Wrapper`: texts put around each
turn, for base models that were trained on such a form.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from core.catalogue_schema import wrappers as _wrappers
from core.engines.base import Engine
from core.errors import TemplateError
from core.store import Store
from core.types import Message

CHAT = "chat"
COMPLETION = "completion"
_PLACE = "{content}"


@dataclass(frozen=True, slots=True)
class Wrapper:
    """What is written around each turn: one text a role, with `{content}` where the turn's text goes.

    The answer is written behind what stands before `{content}` in `assistant`. `stop` are texts that
    end the answer. `default_system` stands in where a conversation has no system prompt; where that
    is empty too, the text for the system is left out.

    Raises TemplateError when a text lacks its `{content}` or the name can't be used.
    """

    name: str
    system: str
    user: str
    assistant: str
    stop: tuple[str, ...] = ()
    default_system: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip() or self.name != self.name.strip() or "\n" in self.name:
            raise TemplateError(
                f"A prompt style can't be named {self.name!r}.", hint="Give it a name on one line."
            )
        if self.name.casefold() in (CHAT, COMPLETION):
            raise TemplateError(f"The name {self.name!r} is taken.", hint="Choose another name.")
        for role in ("system", "user", "assistant"):
            if getattr(self, role).count(_PLACE) != 1:
                raise TemplateError(
                    f"The {role} text of the prompt style {self.name!r} must have {_PLACE} once.",
                    hint=f"Write {_PLACE} where the message goes.",
                )

    def render(self, messages: Sequence[Message]) -> str:
        """The turns in this form, and the beginning of the assistant's next one."""
        if self.default_system and not any(message.role == "system" for message in messages):
            messages = [Message("system", self.default_system), *messages]
        # not str.format: a message or a text of one's own may have braces
        turns = [getattr(self, message.role).replace(_PLACE, message.content) for message in messages]
        return "".join(turns) + self.assistant.partition(_PLACE)[0]


ALPACA = Wrapper(
    name="Alpaca",
    system="{content}\n\n",
    user="### Instruction:\n{content}\n\n",
    assistant="### Response:\n{content}\n\n",
    stop=("### Instruction:",),
    default_system="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
)
CHATML = Wrapper(
    name="ChatML",
    system="<|im_start|>system\n{content}<|im_end|>\n",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{content}<|im_end|>\n",
    stop=("<|im_end|>",),
)
SHIPPED: dict[str, Wrapper] = {wrapper.name: wrapper for wrapper in (ALPACA, CHATML)}


def wrapper_of(style: str, wrapper: Wrapper | None = None) -> Wrapper | None:
    """The wrapper that `style` names: `wrapper` or a shipped one; None for "chat" and "completion".

    Raises TemplateError when there is none of that name.
    """
    if style in (CHAT, COMPLETION):
        return None
    if wrapper is not None and wrapper.name == style:
        return wrapper
    if style in SHIPPED:
        return SHIPPED[style]
    raise TemplateError(
        f"There is no prompt style {style!r}.", hint="It was deleted, perhaps: choose another one."
    )


def stops(style: str, wrapper: Wrapper | None = None) -> tuple[str, ...]:
    """The texts that end an answer in this style, beside the request's own. Raises as `wrapper_of`."""
    found = wrapper_of(style, wrapper)
    return found.stop if found else ()


def with_stops(
    params: Mapping[str, Any], engine: Engine, style: str, wrapper: Wrapper | None = None
) -> dict[str, Any]:
    """`params` with what ends an answer in this style. Raises as `wrapper_of`.

    A stop that is a control token of the model is given by its id too: such tokens are no text.
    Beam search knows no stops: its answer has to be cut at them.
    """
    texts = stops(style, wrapper)
    if not texts or params.get("beam_width") is not None:
        return dict(params)
    pieces = []
    if "tokens" not in engine.info.cannot:
        encoded = engine.encode(texts)
        pieces = [engine.pieces(token_ids)[0] for token_ids in encoded if len(token_ids) == 1]
    added = {"stop": texts, "stop_token_ids": [piece.token_id for piece in pieces if piece.special]}
    return {
        **params,
        **{name: list(dict.fromkeys([*params.get(name, ()), *more])) for name, more in added.items() if more},
    }


class Wrappers:
    """The shipped wrappers and one's own, which the catalogue keeps. From any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self) -> list[Wrapper]:
        """The shipped ones first, then one's own by name."""
        query = sa.select(_wrappers).order_by(sa.func.lower(_wrappers.c.name), _wrappers.c.name)
        return [*SHIPPED.values(), *(_wrapper(row["body"]) for row in self._store.all(query))]

    def find(self, style: str) -> Wrapper | None:
        """The wrapper of that name; None for "chat" and "completion". Raises as `wrapper_of`."""
        row = self._store.first(sa.select(_wrappers).where(_wrappers.c.name == style))
        return wrapper_of(style, _wrapper(row["body"]) if row else None)

    def save(self, wrapper: Wrapper) -> None:
        """Keep it, in place of the one of that name. Raises TemplateError for a shipped one's name."""
        _refuse_shipped(wrapper.name)
        values = {"updated_at": dt.datetime.now(dt.UTC), "body": asdict(wrapper)}
        query = sqlite.insert(_wrappers).values(name=wrapper.name, **values)
        self._store.execute(query.on_conflict_do_update(index_elements=["name"], set_=values))

    def delete(self, name: str) -> None:
        """Raises TemplateError for a shipped one, or when there is none of that name."""
        _refuse_shipped(name)
        self.find(name)
        self._store.execute(sa.delete(_wrappers).where(_wrappers.c.name == name))


def _refuse_shipped(name: str) -> None:
    if name.casefold() in map(str.casefold, SHIPPED):
        raise TemplateError(
            f"The prompt style {name!r} comes with the workbench and stays as it is.",
            hint="Save yours under another name.",
        )


def _wrapper(body: Mapping[str, Any]) -> Wrapper:
    return Wrapper(**{**body, "stop": tuple(body["stop"])})
