"""What a comparison asks: prompts x parameter sets x samples. Pure data, strict, since it is read back.

A specification is all there is to repeat a comparison; as JSON it goes in and out of pages, files
and `python -m core compare`.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from core import sampling
from core.asks import encodable, read_messages
from core.errors import ParameterError
from core.prompts import Template
from core.run_spec import ExampleSpec, PromptSpec, Strict
from core.types import Message

MAX_ANSWERS = 10_000
MAX_SETS = 64
MAX_KEPT_LOGPROBS = 5_000
"""Answers x (1 + alternatives): a token with its alternatives takes some 50 bytes each."""
MAX_CHARACTERS = 32_000_000
PROMPT = "prompt"
"""In a set's template, the text of the prompt itself, beside the columns of its row."""

_NAME_CHARACTERS = 60
_VALUE_CHARACTERS = 24
_SET_NAME_CHARACTERS = 180
_TEXT_AXES = ("system", "template", "style", "adapter")


def _messages(value: Any) -> tuple[Message, ...]:
    if isinstance(value, list | tuple) and all(isinstance(item, Message) for item in value):
        value = [message.as_dict() for message in value]
    elif isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return read_messages(value, "A prompt")


class PromptItem(Strict):
    """One prompt: a row of the matrix. `messages` end with the user's; a mere text is that message.

    `reference`: the right answer, where one is known. `values`: the columns of the row it was made
    from, for the sets' templates. `made_by`: the specification that made it from that row, if one did.
    """

    messages: Annotated[tuple[Message, ...], BeforeValidator(_messages)]
    reference: str | None = None
    label: str = ""
    values: dict[str, Any] = Field(default_factory=dict)
    made_by: PromptSpec | None = None

    @property
    def text(self) -> str:
        """The last message: what is asked."""
        return self.messages[-1].content

    @property
    def title(self) -> str:
        """One line to know it by."""
        return _one_line(self.label or self.text)


class SetSpec(Strict):
    """One parameter set: a column of the matrix.

    `params`: names of `core.sampling`. `system` replaces the prompt's own system message ("": none),
    `template` (Jinja over the prompt's values and `prompt`) its last user message. `style`: how messages
    become a prompt, as `core.prompt_styles` names it; `template_options`: variables of the chat template.
    `adapter` names the LoRA adapter that answers, None: the model itself.
    """

    name: str = Field(min_length=1, max_length=200)
    params: dict[str, Any] = Field(default_factory=dict)
    system: str | None = None
    template: str | None = None
    style: str = "chat"
    template_options: dict[str, Any] = Field(default_factory=dict)
    adapter: str | None = None

    @field_validator("params")
    @classmethod
    def _valid_params(cls, params: dict[str, Any]) -> dict[str, Any]:
        if params.get("n") not in (None, 1, "1"):
            raise ParameterError("A cell has one answer.", hint="Give seeds for several samples, not n.")
        return sampling.validate(params)


class ComparisonSpec(Strict):
    """Every prompt under every set, once for each seed; a seed of null takes the set's own, or none.

    `baseline` is the place of the set that others are held against. With `top_logprobs`, answers are
    kept with their tokens, each with that many alternatives.
    """

    name: str = ""
    prompts: tuple[PromptItem, ...] = Field(min_length=1)
    sets: tuple[SetSpec, ...] = Field(min_length=1, max_length=MAX_SETS)
    seeds: tuple[int | None, ...] = Field(default=(None,), min_length=1)
    baseline: int = Field(default=0, ge=0)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _fits_together(self) -> ComparisonSpec:
        names = [one.name for one in self.sets]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ParameterError(f"Two sets are called {twice!r}.", hint="Give each its own name.")
        if self.baseline >= len(self.sets):
            raise ParameterError(
                f"The baseline is set {self.baseline}; there are {len(self.sets)}.", hint="Count from 0."
            )
        if self.answers > MAX_ANSWERS:
            raise ParameterError(
                f"{self.words} are more than {MAX_ANSWERS:,}.",
                hint="Take fewer; for whole tables there is the batch page.",
            )
        kept = self.answers * (1 + (self.top_logprobs or 0))
        if self.top_logprobs is not None and kept > MAX_KEPT_LOGPROBS:
            raise ParameterError(
                f"The probabilities of {self.answers:,} answers, {self.top_logprobs} alternatives a token, "
                "are too many to keep.",
                hint="Take fewer answers, or don't keep the probability of each token.",
            )
        blank = next((item for item in self.prompts if not item.text.strip()), None)
        if blank is not None:
            raise ParameterError("A prompt is empty.", hint="Write what the model should answer.")
        for one in self.sets:
            for item in self.prompts if one.template is not None else ():
                messages_of(item, one)  # a template that fails is told before anything is generated
        return self

    @property
    def answers(self) -> int:
        return len(self.prompts) * len(self.sets) * len(self.seeds)

    @property
    def words(self) -> str:
        """Such as "3 prompts x 6 sets x 2 samples = 36 answers"."""
        parts = (
            _counted(len(self.prompts), "prompt"),
            _counted(len(self.sets), "set"),
            _counted(len(self.seeds), "sample"),
        )
        return f"{' x '.join(parts)} = {_counted(self.answers, 'answer')}"

    @property
    def title(self) -> str:
        return self.name.strip() or self.prompts[0].title


def messages_of(item: PromptItem, one: SetSpec) -> tuple[Message, ...]:
    """The chat that a cell asks. Raises TemplateError for a template that this prompt can't fill."""
    messages = list(item.messages)
    if one.template is not None:
        values = {PROMPT: item.text, **item.values}
        messages[-1] = Message("user", encodable(_template(one.template, tuple(values)).render(values)))
    if one.system is not None:
        messages = [message for message in messages if message.role != "system"]
        if one.system.strip():
            messages.insert(0, Message("system", one.system))
    return tuple(messages)


@functools.lru_cache(maxsize=256)
def _template(source: str, names: tuple[str, ...]) -> Template:
    return Template(source, names)


def params_of(one: SetSpec, seed: int | None) -> dict[str, Any]:
    """The parameters of a cell: the set's, with the sample's seed if it has one."""
    return dict(one.params) if seed is None else {**one.params, "seed": seed}


def read_spec(source: str | bytes | Mapping[str, Any]) -> ComparisonSpec:
    """A specification from JSON or what JSON says. Raises ParameterError that names the place."""
    try:
        if isinstance(source, Mapping):
            return ComparisonSpec.model_validate(source)
        if len(source) > MAX_CHARACTERS:
            raise ParameterError(
                f"The specification has over {MAX_CHARACTERS:,} characters.", hint="Take fewer prompts."
            )
        return ComparisonSpec.model_validate_json(source)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "its top"
        raise ParameterError(
            f"The specification of the comparison can't be used: {place}: {first['msg']}.",
            hint="Correct it, or export one from the compare page to start from.",
        ) from error


# -- making sets ------------------------------------------------------------------


def grid(base: SetSpec, axes: Mapping[str, Sequence[Any]]) -> tuple[SetSpec, ...]:
    """A set for every combination of the axes' values, the last axis changing fastest.

    An axis is a sampling parameter, "system", "template", "style" or "adapter"; None leaves it out.
    Names say what differs: "temperature 0.3, top_p 0.8". Raises ParameterError.
    """
    parsed = {name: _axis(name, values) for name, values in axes.items()}
    count = 1
    for values in parsed.values():
        count *= len(values)
    if count > MAX_SETS:
        raise ParameterError(
            f"The grid has {count:,} sets; {MAX_SETS} are possible.", hint="Take fewer values."
        )
    sets: list[SetSpec] = []
    names: set[str] = set()
    for places in itertools.product(*(range(len(values)) for values in parsed.values())):
        chosen = {name: values[place] for (name, values), place in zip(parsed.items(), places, strict=True)}
        words = [
            _value_words(name, values[place], place)
            for (name, values), place in zip(parsed.items(), places, strict=True)
        ]
        name = ", ".join(words)[:_SET_NAME_CHARACTERS] or base.name
        if name in names:  # two long texts, or blank ones
            name = f"{name} ({len(sets) + 1})"
        names.add(name)
        sets.append(_varied(base, chosen, name))
    return tuple(sets)


def _axis(name: str, values: Sequence[Any]) -> list[Any]:
    if not values:
        raise ParameterError(f"The grid has no value for {name}.", hint="Give at least one.")
    parsed = list(values) if name in _TEXT_AXES else [sampling.find(name).parse(value) for value in values]
    twice = next((value for place, value in enumerate(parsed) if value in parsed[:place]), None)
    if twice is not None:
        raise ParameterError(f"{name} has {twice!r} twice in the grid.", hint="Give each value once.")
    return parsed


def _varied(base: SetSpec, chosen: Mapping[str, Any], name: str) -> SetSpec:
    fields = base.model_dump()
    params = dict(base.params)
    for axis, value in chosen.items():
        if axis in _TEXT_AXES:
            fields[axis] = value
        elif value is None:
            params.pop(axis, None)
        else:
            params[axis] = value
    if fields["style"] is None:
        fields["style"] = base.style
    return SetSpec(**{**fields, "params": params, "name": name})


def _value_words(name: str, value: Any, place: int) -> str:
    """Such as "top_p 0.8". Long texts go by their number."""
    if value is None:
        return f"no {name}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"  # 0, not 0.0
    if len(text) > _VALUE_CHARACTERS or "\n" in text or not text.strip():
        return f"{name} {place + 1}" if text.strip() else f"no {name}"
    return f"{name} {text}"


# -- making prompts ---------------------------------------------------------------


def from_conversation(messages: Sequence[Message]) -> tuple[PromptItem, ...]:
    """A prompt for each user message of the conversation, oldest first, with all that came before it.

    Raises ParameterError when the user has said nothing.
    """
    items = tuple(
        PromptItem(messages=tuple(messages[: place + 1]))
        for place, message in enumerate(messages)
        if message.role == "user" and message.content.strip()
    )
    if not items:
        raise ParameterError("The conversation has no question in it.", hint="Choose another one.")
    return items


# -- on to the batch page ---------------------------------------------------------


def to_prompt_spec(one: SetSpec, item: PromptItem) -> tuple[PromptSpec, dict[str, Any]]:
    """What a batch asks to go on with this set: the prompt it makes of each row, and its parameters.

    A prompt that came from a table keeps the specification that made it; another one becomes a
    template without columns, for the columns to be written in.
    """
    made = item.made_by
    if made is None:
        made = PromptSpec(
            template=_as_template(item.text),
            system=_as_template("\n\n".join(_contents(item, "system"))),
            examples=_examples(item),
        )
    changes: dict[str, Any] = {}
    if one.template is not None:
        changes |= {"mode": "template", "template": one.template, "prompt_column": None}
        changes |= {"instruction": "", "fields": (), "messages_column": None}
    if one.system is not None:
        changes["system"] = _as_template(one.system)
    changes["adapter"] = one.adapter
    return made.model_copy(update=changes), dict(one.params)


def _as_template(text: str) -> str:
    """`text` as a Jinja template that renders to it."""
    return text.replace("{", "{{ '{' }}") if any(sign in text for sign in ("{{", "{%", "{#")) else text


def _contents(item: PromptItem, role: str) -> list[str]:
    return [message.content for message in item.messages if message.role == role]


def _examples(item: PromptItem) -> tuple[ExampleSpec, ...]:
    """The turns before the last question, where they are pairs."""
    turns = [message for message in item.messages[:-1] if message.role != "system"]
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    if any((asked.role, said.role) != ("user", "assistant") for asked, said in pairs) or len(turns) % 2:
        return ()
    return tuple(ExampleSpec(user=asked.content, assistant=said.content) for asked, said in pairs)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _NAME_CHARACTERS else line[: _NAME_CHARACTERS - 1].rstrip() + "…"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
