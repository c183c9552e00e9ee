"""Rows into asks: what a `PromptSpec` makes of each row of a table.

The order of what the model reads: system prompt, few-shot examples, the row's own
prompt, and the later turns. Everything that is wrong with the specification is found
when the Recipe is made; what is wrong with one row fails that row only.
"""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core import openai_batch, sampling
from core.asks import Ask, encodable, read_messages, read_texts
from core.errors import ParameterError, TemplateError
from core.prompts import Template, check_column
from core.run_spec import PromptSpec
from core.tables.types import Column
from core.tables.writers import jsonable
from core.types import Message

__all__ = ["Ask", "Recipe", "field_text"]

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=jsonable)
_SURROGATE = re.compile("[\ud800-\udfff]")


def field_text(name: str, value: Any) -> str:
    """One column of a row in fields mode: `"name": value`, the value as JSON. What JSON lacks is text.

    >>> field_text("评论", 'a "b"'), field_text("n", 1.5), field_text("n", None)
    ('"评论": "a \\\\"b\\\\""', '"n": 1.5', '"n": null')
    """
    text = f"{_JSON.encode(name)}: {value_text(value)}"
    if text.isascii():
        return text
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def value_text(value: Any) -> str:
    """`value` as JSON; what JSON lacks is text."""
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return str(value)
    try:
        return _JSON.encode(value)
    except (ValueError, TypeError):  # a nan, or a map whose keys are no texts
        return _JSON.encode(_plain(value))


def _plain(value: Any) -> Any:
    """`value` with texts for numbers that JSON lacks, and for keys."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Recipe:
    """How a row becomes an Ask.

    `variables`: the columns that decide the answer: the one that names the adapter, then the others
    in order of first appearance in the prompt as the model reads it, those that only give parameters
    last. `fields`: the columns of fields mode, which may be read in any order; `order_fixed` says that
    there is nothing to choose. `leading`: the variables read before the first of the fields.

    Raises TemplateError, UnknownColumn or ParameterError for a specification that can't work.
    """

    def __init__(self, prompt: PromptSpec, columns: Sequence[Column]) -> None:
        names = tuple(column.name for column in columns)
        self.prompt = prompt
        _check(prompt, columns, names)
        self._system = Template(prompt.system, names) if prompt.system else None
        self._user = Template(_user_source(prompt), names)
        self._turns = tuple(Template(turn, names) for turn in prompt.turns)
        self._examples = tuple(
            Message(role, encodable(text))
            for example in prompt.examples
            for role, text in (("user", example.user), ("assistant", example.assistant))
        )
        self._parameters = tuple(
            (sampling.find(name), column) for name, column in prompt.param_columns.items()
        )
        modes: dict[str, Callable[[Mapping[str, Any], Sequence[str] | None], Ask | None]] = {
            "template": self._from_template,
            "fields": self._from_fields,
            "messages": self._from_messages,
            "openai": lambda row, _fields: openai_batch.read_line(row, prompt.batch_lines),
        }
        self._ask = modes[prompt.mode]
        self.fields = prompt.fields if prompt.mode == "fields" else ()
        self.leading = _unique(
            # prompts share a prefix under the same adapter only, and an engine holds few of them at once
            (prompt.adapter_column,) if prompt.adapter_column is not None else (),
            self._system.variables if self._system else (),
            self._user.variables,
        )
        self.variables = _unique(
            self.leading,
            self.fields,
            (prompt.messages_column,) if prompt.mode == "messages" else (),
            openai_batch.ASKED if prompt.mode == "openai" else (),
            *(turn.variables for turn in self._turns),
            (prompt.turns_column,) if prompt.turns_column is not None else (),
            prompt.param_columns.values(),
        )

    @property
    def order_fixed(self) -> bool:
        return len(self.fields) < 2

    def ask(self, row: Mapping[str, Any], fields: Sequence[str] | None = None) -> Ask | None:
        """What one row asks, or None when its prompt is blank.

        `row` maps at least `variables` to values as `tables.decode` gives them; `fields` is the
        order of the fields for this row, None: as specified. Raises TemplateError or
        ParameterError when it is the row that is wrong.
        """
        return self._ask(row, fields)

    def _from_template(self, row: Mapping[str, Any], _fields: Sequence[str] | None) -> Ask | None:
        text = self._user.render(row)
        return self._asked(row, (Message("user", encodable(text)),)) if text.strip() else None

    def _from_fields(self, row: Mapping[str, Any], fields: Sequence[str] | None) -> Ask | None:
        if all(_is_blank(row[name]) for name in self.fields):
            return None
        table = ", ".join(field_text(name, row[name]) for name in fields or self.fields)
        instruction = encodable(self._user.render(row))
        text = f"{instruction}\n\n{{{table}}}" if instruction.strip() else f"{{{table}}}"
        return self._asked(row, (Message("user", text),))

    def _from_messages(self, row: Mapping[str, Any], _fields: Sequence[str] | None) -> Ask | None:
        column = self.prompt.messages_column
        if _is_blank(row[column]):
            return None
        chat = read_messages(row[column], f"Column {column!r}")
        return self._asked(row, chat) if chat[-1].content.strip() else None

    def _asked(self, row: Mapping[str, Any], chat: tuple[Message, ...]) -> Ask:
        """`chat` behind the system prompt, unless it has its own, and the examples."""
        own = next(at for at, message in enumerate(chat) if message.role != "system")
        opening, chat = chat[:own], chat[own:]
        if not opening and self._system:
            system = encodable(self._system.render(row))
            opening = (Message("system", system),) if system.strip() else ()
        return Ask(
            (*opening, *self._examples, *chat),
            self._later(row),
            self._params(row),
            adapter=self._adapter(row),
        )

    def _later(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        column = self.prompt.turns_column
        if column is not None:
            return read_texts(row[column], f"Column {column!r}")
        return tuple(text for turn in self._turns if (text := encodable(turn.render(row))).strip())

    def _adapter(self, row: Mapping[str, Any]) -> str | None:
        column = self.prompt.adapter_column
        return None if column is None or _is_blank(row[column]) else str(row[column]).strip()

    def _params(self, row: Mapping[str, Any]) -> dict[str, Any]:
        params = {}
        for parameter, column in self._parameters:
            if _is_blank(row[column]):
                continue
            try:
                value = parameter.parse(row[column])
            except ParameterError as error:
                raise ParameterError(f"Column {column!r}: {error.message}", hint=error.hint) from error
            if value != []:
                params[parameter.name] = value
        return params


def _check(prompt: PromptSpec, columns: Sequence[Column], names: Sequence[str]) -> None:
    """Raise for what the modes need and what they can't have."""
    named = (prompt.messages_column, prompt.turns_column, prompt.adapter_column)
    for name in (*prompt.fields, *named, *prompt.param_columns.values()):
        if name is not None:
            check_column(name, names)
    if prompt.turns and prompt.turns_column is not None:
        raise TemplateError("The later turns are given twice.", hint="Write them, or name their column.")
    if prompt.mode == "fields":
        twice = [name for name in prompt.fields if prompt.fields.count(name) > 1]
        if twice:
            raise TemplateError(f"The field {twice[0]!r} is named twice.", hint="Name each column once.")
        if not prompt.fields:
            raise TemplateError("No fields are chosen.", hint="Choose the columns that the model shall see.")
    if prompt.mode == "messages" and prompt.messages_column is None:
        raise TemplateError("No column is named that holds the chats.", hint="Name the messages column.")
    if prompt.mode == "openai":
        _check_openai(prompt, columns)


def _check_openai(prompt: PromptSpec, columns: Sequence[Column]) -> None:
    if not openai_batch.is_batch(columns):
        raise TemplateError(
            "This table is no OpenAI Batch file.",
            hint=f"Its lines have the keys {', '.join(openai_batch.COLUMNS)}.",
        )
    surplus = [
        name
        for name in ("system", "turns", "turns_column", "examples", "param_columns", "adapter_column")
        if getattr(prompt, name)
    ]
    if surplus:
        raise TemplateError(
            f"An OpenAI Batch file says itself what is asked; {surplus[0]} can't be added.",
            hint="Leave it out, or use a template over the columns.",
        )


def _user_source(prompt: PromptSpec) -> str:
    """The source of what stands before the fields, or of the whole prompt."""
    if prompt.mode == "template":
        return prompt.template
    return prompt.instruction if prompt.mode == "fields" else ""


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _unique(*groups: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
