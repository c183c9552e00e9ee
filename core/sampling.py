"""The one table of sampling parameters: widgets, command line, validation and docs come from it.

Names, meaning and ranges are vLLM's (`vllm.SamplingParams`), which are OpenAI's
where OpenAI has them. Pure: imports no engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.errors import ParameterError
from core.named_values import NamedValue, did_you_mean
from core.sampling_rules import check_together
from core.sampling_values import KIND_WORDS, PARSERS, Kind
from core.types import Feature

Group = Literal["basic", "penalties", "stopping", "output", "advanced", "answers"]


@dataclass(frozen=True, slots=True)
class GroupWords:
    """What a group of parameters is called, and in one sentence what it is for."""

    title: str
    help: str


GROUPS: dict[Group, GroupWords] = {
    "basic": GroupWords("Sampling", "How the next token is chosen among the likely ones."),
    "penalties": GroupWords("Penalties", "How much the answer may repeat itself or the prompt."),
    "stopping": GroupWords("Length and stopping", "How long the answer may get, and what ends it."),
    "output": GroupWords("Output", "What may stand in the answer, and what is shown of it."),
    "advanced": GroupWords("Advanced", "Single tokens by their ids, and search in place of chance."),
    "answers": GroupWords(
        "Answers as data (batch)", "Several answers to a row, their probability, their form."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter(NamedValue):
    """One row of the table.

    `low`, `high` and `step` bound the slider, not the value. `default` None
    means "not sent". `form` puts it into the short form of the pages; `batch_only` keeps it off
    the general form: what it asks for has no place in a chat. `feature` is what an engine must be
    able to do for it (`EngineInfo.cannot`).
    """

    parsers = PARSERS
    kind_words = KIND_WORDS

    kind: Kind
    group: Group
    default: Any
    low: float | None = None
    high: float | None = None
    step: float | None = None
    form: bool = False
    batch_only: bool = False
    feature: Feature | None = None


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        name="temperature", kind="float", group="basic", default=1.0, minimum=0, maximum=100,
        low=0, high=2, step=0.05, form=True,
        help="How freely to choose: 0 always takes the likeliest token, higher values vary more.",
    ),
    Parameter(
        name="top_p", kind="float", group="basic", default=1.0, minimum=0, maximum=1, above=True,
        low=0.05, high=1, step=0.05, form=True,
        help="Choose only among the likeliest tokens that together reach this probability; 1 is off.",
    ),
    Parameter(
        name="top_k", kind="int", group="basic", default=0, minimum=-1, low=0, high=200, step=1, form=True,
        help="Choose only among this many likeliest tokens; 0 is off.",
    ),
    Parameter(
        name="min_p", kind="float", group="basic", default=0.0, minimum=0, maximum=1,
        low=0, high=1, step=0.01, form=True,
        help="Drop tokens less likely than this share of the likeliest one; 0 is off.",
    ),
    Parameter(
        name="seed", kind="int", group="basic", default=None, minimum=-(2**63), maximum=2**63 - 1, form=True,
        help="The same seed and parameters give the same answer again; empty means a new one each time.",
    ),
    Parameter(
        name="repetition_penalty", kind="float", group="penalties", default=1.0,
        minimum=0, above=True, maximum=10, low=0.5, high=2, step=0.05, form=True,
        help="Above 1 makes tokens of the prompt and the answer less likely to come again; 1 is off.",
    ),
    Parameter(
        name="presence_penalty", kind="float", group="penalties", default=0.0, minimum=-2, maximum=2,
        low=-2, high=2, step=0.1, form=True,
        help="Above 0 favours tokens the answer has not used yet; 0 is off.",
    ),
    Parameter(
        name="frequency_penalty", kind="float", group="penalties", default=0.0, minimum=-2, maximum=2,
        low=-2, high=2, step=0.1, form=True,
        help="Above 0 makes a token less likely each time the answer uses it; 0 is off.",
    ),
    Parameter(
        name="max_tokens", kind="int", group="stopping", default=256, minimum=1,
        low=1, high=4096, step=1, form=True,
        help="The longest answer, in tokens; a longer one is cut with finish reason 'length'.",
    ),
    Parameter(
        name="stop", kind="text_list", group="stopping", default=None, form=True,
        help="Texts that end the answer as soon as one appears; they are left out of it.",
    ),
    Parameter(
        name="min_tokens", kind="int", group="stopping", default=0, minimum=0, low=0, high=4096, step=1,
        help="The shortest answer, in tokens: it can't end before.",
    ),
    Parameter(
        name="stop_token_ids", kind="int_list", group="stopping", default=None,
        help="Token ids that end the answer.",
    ),
    Parameter(
        name="ignore_eos", kind="bool", group="stopping", default=False,
        help="Go on past the model's end-of-text token, to max_tokens; for measuring speed.",
    ),
    Parameter(
        name="include_stop_str_in_output", kind="bool", group="output", default=False,
        help="Keep the stop text at the end of the answer.",
    ),
    Parameter(
        name="skip_special_tokens", kind="bool", group="output", default=True,
        help="Leave the model's control tokens out of the answer.",
    ),
    Parameter(
        name="bad_words", kind="text_list", group="output", default=None,
        help="Texts the answer must not contain.",
    ),
    Parameter(
        name="logit_bias", kind="map", group="advanced", default=None,
        help='Raise or lower single tokens, as JSON: {"1234": -100} forbids token 1234.',
    ),
    Parameter(
        name="allowed_token_ids", kind="int_list", group="advanced", default=None,
        help="The answer is made of these tokens only.",
    ),
    Parameter(
        name="spaces_between_special_tokens", kind="bool", group="advanced", default=True,
        help="Put spaces between control tokens, where skip_special_tokens is off.",
    ),
    Parameter(
        name="beam_width", kind="int", group="advanced", default=None, minimum=2, maximum=16,
        feature="beam_search",
        help="Search for the likeliest whole answer along this many paths, instead of drawing tokens: "
        "temperature, top_p, top_k, min_p and seed then do nothing. Empty is off.",
    ),
    Parameter(
        name="length_penalty", kind="float", group="advanced", default=1.0, minimum=-5, maximum=5,
        low=0, high=2, step=0.1, feature="beam_search",
        help="With beam_width: higher values favour longer answers, lower ones shorter.",
    ),
    Parameter(
        name="n", kind="int", group="answers", default=1, minimum=1, maximum=128, batch_only=True,
        help="How many answers to each prompt; more than one needs a temperature above 0.",
    ),
    Parameter(
        name="logprobs", kind="int", group="answers", default=None, minimum=0, maximum=20, batch_only=True,
        help="Give the answer's log-probability as well, summed over its tokens; 0 is enough.",
    ),
    Parameter(
        name="structured_outputs", kind="structured", group="answers", default=None, batch_only=True,
        feature="structured_outputs",
        help='The form the answer must have, as JSON: {"choice": ["yes", "no"]}, {"regex": "[0-9]{4}"}, '
        '{"json": {"type": "object", ...}}, {"grammar": "root ::= ..."} or {"json_object": true}.',
    ),
)  # fmt: skip

BY_NAME: dict[str, Parameter] = {parameter.name: parameter for parameter in PARAMETERS}


def find(name: str) -> Parameter:
    """The row named `name`. Raises ParameterError, with the nearest name that exists."""
    if name in BY_NAME:
        return BY_NAME[name]
    hint = did_you_mean(name, BY_NAME, f"Known parameters: {', '.join(BY_NAME)}.")
    raise ParameterError(f"There is no sampling parameter {name!r}.", hint=hint)


def validate(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with each value in its own type; None values are left out. Raises ParameterError."""
    parsed = {name: find(name).parse(value) for name, value in params.items()}
    result = {name: value for name, value in parsed.items() if value is not None and value != []}
    check_together(result)
    return result


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["temperature=0", "stop=END", "stop=\\n"]` -> validated params; a repeated list parameter adds up.

    Raises ParameterError.
    """
    raw: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ParameterError(
                f"{assignment!r} is not of the form name=value.", hint="Write temperature=0, say."
            )
        value = find(name).parse(text)
        if name in raw and isinstance(raw[name], list):
            raw[name] = raw[name] + value
        elif name in raw:
            raise ParameterError(f"{name} is given twice.", hint="Give it once.")
        else:
            raw[name] = value
    return validate(raw)


def defaults(generation_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The table's defaults, overlaid with what the model's generation_config.json recommends.

    Values of the model that this table would refuse (a temperature of null, say) are left out.
    """
    result = {parameter.name: parameter.default for parameter in PARAMETERS if parameter.default is not None}
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        value = (generation_config or {}).get(name)
        if value is None:
            continue
        try:
            result[name] = BY_NAME[name].parse(value)
        except ParameterError:  # a model's own odd value must not stop anybody from using it
            result.setdefault(name, BY_NAME[name].default)
    return result


def as_assignments(params: Mapping[str, Any]) -> list[str]:
    """The inverse of `parse_assignments`: lists, maps and truth values are written as JSON."""
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in params.items()]


def as_text() -> str:
    """The table for a terminal."""
    lines = []
    for group, words in GROUPS.items():
        lines += ["", f"{words.title}: {words.help}"] if lines else [f"{words.title}: {words.help}"]
        for row in _rows(group):
            lines += [f"  {row.name:<30}{row.range_text} (default {_default_text(row)})", f"      {row.help}"]
    return "\n".join(lines)


def as_markdown() -> str:
    """The table as the page docs/sampling.md."""
    lines = [
        "# Sampling parameters",
        "",
        "Names, meaning and ranges are vLLM's. What you leave out takes the model's own recommendation",
        "(`generation_config.json`), or else the default below. On the command line: `--param NAME=VALUE`;",
        'lists repeat (`--param stop=END --param stop="###"`) or are JSON. To keep some under a name:',
        "`python -m core presets save NAME --param ...`, or Presets on any page; `--preset NAME` takes them.",
        "",
        "*This page is written by `python -m core params --markdown`.*",
    ]
    for group, words in GROUPS.items():
        lines += [
            "",
            f"## {words.title}",
            "",
            words.help,
            "",
            "| name | values | default | what it does |",
            "|---|---|---|---|",
        ]
        for row in _rows(group):
            lines.append(f"| `{row.name}` | {row.range_text} | {_default_text(row)} | {row.help} |")
    return "\n".join(lines)


def _rows(group: Group) -> list[Parameter]:
    return [row for row in PARAMETERS if row.group == group]


def _default_text(row: Parameter) -> str:
    return (
        "none"
        if row.default is None
        else str(row.default).lower()
        if row.kind == "bool"
        else f"{row.default}"
    )
