"""Table rows into requests: rendered, in the model's chat form, tokenized many at a time, made to fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from core import prompts, sampling
from core.adapters.registry import named
from core.asks import Ask
from core.engines.base import Engine
from core.errors import ParameterError, TemplateError, WorkbenchError
from core.recipes import Recipe
from core.results import Asked, InputRow, Result
from core.run_spec import OverflowSpec
from core.tables import Column
from core.types import ChatPrompt, LoraAdapter, Message, Prompt

_CUT_ATTEMPTS = 6


@dataclass(frozen=True, slots=True)
class Item:
    """A row ready for the engine. `turns` are the user messages still to come after this one.

    `key` is that of `request_key`; `text` is set when the prompt is no chat. `truncated_tokens`:
    what was cut from the prompt, of all turns so far, to make it fit. `adapter` is the one that answers.
    `token_ids` is None where the engine has no "tokens", and makes them of the text or the chat itself.
    """

    row: int
    token_ids: Sequence[int] | None
    params: Mapping[str, Any]
    key: bytes
    messages: tuple[Message, ...] = ()
    turns: tuple[str, ...] = ()
    text: str | None = None
    truncated_tokens: int | None = None
    adapter: LoraAdapter | None = None

    @property
    def prompt(self) -> Prompt:
        """What the engine gets."""
        if self.token_ids is not None:
            return self.token_ids
        return ChatPrompt(self.messages) if self.text is None else self.text

    @property
    def asked(self) -> Asked:
        return Asked(self.row, self.key, self.params["max_tokens"], self.truncated_tokens)


class Preparer:
    """Rows of the table into Items, or into the reason why not. Runs on the reader's thread.

    `params` are the run's, complete; a row's own are laid over them. `adapters`: as
    `core.adapters.registry.registered` gives them. Raises ParameterError where prompts are to be cut,
    and the engine has no "tokens" to cut them by.
    """

    def __init__(
        self,
        recipe: Recipe,
        columns: Sequence[Column],
        engine: Engine,
        params: Mapping[str, Any],
        overflow: OverflowSpec,
        field_orders: Sequence[Sequence[str]] = (),
        adapters: Mapping[str, LoraAdapter] = MappingProxyType({}),
    ) -> None:
        self._recipe = recipe
        self._width = len(columns)
        self._position = {column.name: index for index, column in enumerate(columns)}
        self._engine = engine
        self._params = dict(params)
        self._overflow = overflow
        self._field_orders = field_orders
        self._adapters = adapters
        self._counts = "tokens" not in engine.info.cannot
        if not self._counts and (overflow.action != "error" or overflow.prompt_tokens is not None):
            raise ParameterError(
                f"Long prompts can't be cut or limited: {engine.info.cannot['tokens']}",
                hint="Let prompts that are too long be errors, or load the model with another engine.",
            )

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns that `prepare` needs."""
        return self._recipe.variables

    def prepare(self, rows: Sequence[tuple[InputRow, int | None]]) -> list[Item | Result]:
        """One entry a row, in order. Each row comes with the index of its field order, if it has one."""
        return self._encoded([self._item(row, order) for row, order in rows])

    def follow(self, item: Item, answer: str) -> Item | Result:
        """The request for the next turn, once `answer` is there."""
        turns = (Message("assistant", answer), Message("user", item.turns[0]))
        following = replace(item, messages=(*item.messages, *turns), turns=item.turns[1:])
        (outcome,) = self._encoded([following])
        return outcome

    def _item(self, row: InputRow, order: int | None) -> Item | Result:
        if row.problem:
            return Result(row=row.row, status="error", error=row.problem)
        if row.cells is not None:
            missing = [name for name in self._recipe.variables if self._position[name] >= row.cells]
            if missing:
                cells = f"it has {row.cells} of {self._width} cells"
                message = f"line {row.line} ends before column {missing[0]!r}: {cells}"
                return Result(row=row.row, status="error", error=message)
        try:
            ask = self._recipe.ask(row.values, None if order is None else self._field_orders[order])
            if ask is None:
                return Result(row=row.row, status="skipped", error="The prompt is empty.")
            params = {**self._params, **ask.params} if ask.params else self._params
            if ask.params:
                sampling.check_together(params)
            if ask.turns and params.get("n", 1) > 1:
                raise ParameterError("n is more than 1 in a talk of several turns.", hint="Leave n out.")
            adapter = named(ask.adapter or self._recipe.prompt.adapter, self._adapters)
        except (TemplateError, ParameterError) as error:
            return _failed(row.row, error)
        key = request_key(ask, params, self._overflow, adapter)
        return Item(
            row.row, (), params, key, tuple(ask.messages), tuple(ask.turns), ask.text, adapter=adapter
        )

    def _encoded(self, items: list[Item | Result]) -> list[Item | Result]:
        """Give each Item its tokens, and make it fit or say that it doesn't."""
        if not self._counts:
            return [replace(item, token_ids=None) if isinstance(item, Item) else item for item in items]
        chats = [(at, item) for at, item in enumerate(items) if isinstance(item, Item) and item.text is None]
        texts = [
            (at, item) for at, item in enumerate(items) if isinstance(item, Item) and item.text is not None
        ]
        outcomes = encode_chats(self._engine, [item.messages for _at, item in chats])
        encoded = (
            self._engine.encode([item.text for _at, item in texts], add_special_tokens=True) if texts else []
        )
        for (at, item), outcome in zip([*chats, *texts], [*outcomes, *encoded], strict=True):
            if isinstance(outcome, WorkbenchError):
                items[at] = _failed(item.row, outcome)
            else:
                items[at] = self._fitting(replace(item, token_ids=outcome))
        return items

    def _fitting(self, item: Item) -> Item | Result:
        limit = self._engine.info.max_model_len
        tokens = len(item.token_ids)
        overflow = self._overflow
        if overflow.action == "error":
            most = min(limit - 1, overflow.prompt_tokens or limit)
            if tokens <= most:
                return item
            message = f"The prompt has {tokens:,} tokens; the context holds {limit:,}, the answer included."
            if tokens < limit:
                message = f"The prompt has {tokens:,} tokens; at most {most:,} are allowed."
            return Result(row=item.row, status="error", error=message, prompt_tokens=tokens)
        answer = int(item.params.get("max_tokens", sampling.BY_NAME["max_tokens"].default))
        if answer >= limit:
            message = (
                f"max_tokens={answer:,} leaves no room for a prompt: the context holds {limit:,} tokens."
            )
            return Result(row=item.row, status="error", error=message, prompt_tokens=tokens)
        most = min(overflow.prompt_tokens or limit, limit - answer)
        return item if tokens <= most else self._cut(item, most)

    def _cut(self, item: Item, most: int) -> Item | Result:
        """Shorten the last user message until the prompt has at most `most` tokens.

        The message is cut, not the finished prompt: the model's own frame around it stays whole.
        """
        if item.text is not None:
            ids = item.token_ids[-most:] if self._overflow.action == "left" else item.token_ids[:most]
            return replace(item, token_ids=ids, truncated_tokens=len(item.token_ids) - most)
        last = item.messages[-1]
        (content,) = self._engine.encode([last.content])
        keep = len(content)
        over = len(item.token_ids) - most
        for _attempt in range(_CUT_ATTEMPTS):  # cutting may join tokens differently: a token or two more
            keep -= over
            if keep < 1:
                break
            kept = content[-keep:] if self._overflow.action == "left" else content[:keep]
            text = self._engine.decode(kept).strip("\ufffd")  # half a character at the edge
            messages = (*item.messages[:-1], Message(last.role, text))
            (outcome,) = encode_chats(self._engine, [messages])
            if isinstance(outcome, WorkbenchError):
                return _failed(item.row, outcome)
            over = len(outcome) - most
            if over <= 0:
                cut = len(content) - keep + (item.truncated_tokens or 0)
                return replace(item, token_ids=outcome, messages=messages, truncated_tokens=cut)
        message = (
            f"The prompt can't be cut to {most:,} tokens: what stands around the last message is longer."
        )
        return Result(row=item.row, status="error", error=message, prompt_tokens=len(item.token_ids))


def request_key(
    ask: Ask, params: Mapping[str, Any], overflow: OverflowSpec, adapter: LoraAdapter | None = None
) -> bytes:
    """A digest of all that decides the answer: 16 bytes.

    Without `max_tokens`, but for talks: whether it cut one of their turns is not kept.
    """
    asked = [
        [[message.role, message.content] for message in ask.messages],
        list(ask.turns),
        ask.text,
        {name: value for name, value in params.items() if name != "max_tokens" or ask.turns},
        [overflow.action, overflow.prompt_tokens],
        *([[adapter.name, adapter.number]] if adapter else ()),  # keys of before adapters stay as they were
    ]
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _failed(row: int, error: WorkbenchError) -> Result:
    return Result(row=row, status="error", error=str(error))


def encode_chats(engine: Engine, chats: Sequence[Any]) -> list[list[int] | TemplateError]:
    """Token ids of each chat by the model's own template, or the template's refusal of that one chat."""
    if not chats:
        return []
    if not engine.info.has_chat_template:
        return list(engine.encode([prompts.plain_text(chat) for chat in chats], add_special_tokens=True))
    try:
        return list(engine.encode(engine.render_chat(chats)))
    except TemplateError as error:
        if len(chats) == 1:
            return [error]
        # one chat is at fault: find it, so that only its row fails
        return [outcome for chat in chats for outcome in encode_chats(engine, [chat])]
