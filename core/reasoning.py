"""An answer -> what the model thought and what it says.

Models mark their thoughts in different ways. The marks are those of the models' own chat templates
and of vLLM's parsers (`vllm/reasoning/` and `vllm/parser/`, 0.32: the names in brackets there):

- `<think>` DeepSeek-R1, Qwen3, GLM-4.5, SmolLM3, MiniMax-M2, OLMo 3 (deepseek_r1, qwen3, glm45, ...);
  Hunyuan-A13B writes its answer between `<answer>` and `</answer>` (hunyuan_a13b)
- `<thinking>`, `<reasoning>` prompts and fine-tunes that ask for these tags
- `[THINK]` Mistral's Magistral (mistral); `<seed:think>` Seed-OSS (seed_oss); `<mm:think>` MiniMax-M3
- `◁think▷` Kimi-VL-Thinking; `<|open|>think<|sep|>` Kimi K3 (kimi_k3)
- channels: gpt-oss (openai_gptoss; github.com/openai/harmony), Gemma 4 (gemma4)
- `<|START_THINKING|>` Command A Reasoning (cohere_command3)
- "Here is my thought process:" Granite 3.2 (granite)

Some templates end with the opening mark: such an answer begins inside, and only the closing mark
comes. Where the marks are control tokens, they are in the text only with skip_special_tokens off;
what gpt-oss leaves without them ("analysis...assistantfinal...") is read all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

AUTO = "auto"
NONE = "none"


@dataclass(frozen=True, slots=True)
class Reasoned:
    """`reasoning` and `answer` without the marks; `is_open`: the reasoning has no end yet."""

    reasoning: str
    answer: str
    is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """How one family of models marks its thoughts, as regular expressions.

    `answer` are marks around the answer. `alone`: a closing mark without an opening one closes too.
    `begins_inside`: without an opening mark, all is reasoning until the closing one comes.
    `automatic`: "auto" tries it; what could be meant otherwise has to be chosen.
    """

    title: str
    opening: str
    closing: str
    answer: tuple[str, str] | None = None
    alone: bool = True
    begins_inside: bool = False
    automatic: bool = True


def _tag(name: str) -> Parser:
    return Parser(title=f"<{name}>", opening=f"<{name}>", closing=f"</{name}>")


PARSERS: dict[str, Parser] = {
    "think": _tag("think"),
    "think_opened": Parser(
        title="<think>, opened by the template",
        opening="<think>",
        closing="</think>",
        begins_inside=True,
        automatic=False,
    ),
    "hunyuan_a13b": Parser(
        title="<think>, then <answer>",
        opening="<think>",
        closing="</think>",
        answer=("<answer>", "</answer>"),
        automatic=False,
    ),
    "thinking": _tag("thinking"),
    "reasoning": _tag("reasoning"),
    "mistral": Parser(title="[THINK]", opening=r"\[THINK\]", closing=r"\[/THINK\]"),
    "seed_oss": _tag("seed:think"),
    "minimax_m3": _tag("mm:think"),
    "kimi": Parser(title="◁think▷", opening="◁think▷", closing="◁/think▷"),
    "kimi_k3": Parser(
        title="Kimi K3",
        opening=r"<\|open\|>think<\|sep\|>",
        closing=r"<\|close\|>think<\|sep\|>",
        answer=(r"<\|open\|>response<\|sep\|>", r"<\|close\|>response<\|sep\|>"),
    ),
    "gpt_oss": Parser(
        title="gpt-oss channels",
        opening=r"(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>|analysis(?=[A-Z])",
        closing=r"<\|end\|>|(?=assistantfinal)",
        answer=(
            r"(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>|assistantfinal",
            r"<\|return\|>|<\|end\|>",
        ),
        alone=False,
    ),
    "gemma4": Parser(title="Gemma 4 channels", opening=r"<\|channel>thought\n", closing=r"<channel\|>"),
    "cohere": Parser(
        title="Command A",
        opening=r"<\|START_THINKING\|>",
        closing=r"<\|END_THINKING\|>",
        answer=(r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
    ),
    "granite": Parser(
        title="Here is my thought process",
        opening=r"Here(?:'s| is) my thought process:",
        closing=r"Here(?:'s| is) my response:",
        alone=False,
    ),
}


def split(text: str, parser: str = AUTO, *, begins_inside: bool = False) -> Reasoned:
    """Part `text`, which may break off anywhere. Without reasoning, `answer` is `text` as it is.

    "auto" takes what finds its marks: an opening one at the very beginning, else a closing one
    alone that is not quoted. "none" parts nothing. `begins_inside`: the prompt ended with the
    opening mark (see `opened_by`). Raises KeyError for a parser that isn't in the table.
    """
    if parser == NONE:
        return Reasoned("", text)
    tried = [one for one in PARSERS.values() if one.automatic] if parser == AUTO else [PARSERS[parser]]
    begins_inside = begins_inside or any(one.begins_inside for one in tried)
    for one in tried:
        if found := _opened(text, one):
            return found
    for one in tried:
        if found := _closed_alone(text, one, begins_inside):
            return found
    if begins_inside:
        return Reasoned(text.strip(), "", is_open=True)
    for one in tried:
        answer = _unwrapped(text, one)
        if answer is not None:
            return Reasoned("", answer)
    return Reasoned("", text)


def opened_by(prompt: str) -> bool:
    """Whether `prompt` ends with an opening mark: the answer then begins inside the reasoning."""
    return any(re.search(rf"(?:{one.opening})\s*\Z", prompt) for one in PARSERS.values())


def _opened(text: str, parser: Parser) -> Reasoned | None:
    """The parts of a text that begins with an opening mark: one thought, or several after each other."""
    thoughts: list[str] = []
    rest = text
    while opening := re.match(rf"\s*(?:{parser.opening})", rest):
        thought, *after = re.split(parser.closing, rest[opening.end() :], maxsplit=1)
        thoughts += [thought.strip()] if thought.strip() else []
        if not after:
            return Reasoned("\n\n".join(thoughts), "", is_open=True)
        rest = after[0]
    return None if rest is text else Reasoned("\n\n".join(thoughts), _answer(rest, parser))


def _closed_alone(text: str, parser: Parser, begins_inside: bool) -> Reasoned | None:
    """The parts of a text with a closing mark alone: where it isn't known to begin inside, a plain one."""
    if not parser.alone:
        return None
    closing = re.search(rf"(?<![`'\"])(?:{parser.closing})(?![`'\"])", text)
    if closing is None or (not begins_inside and re.search(parser.opening, text[: closing.start()])):
        return None
    return Reasoned(text[: closing.start()].strip(), _answer(text[closing.end() :], parser))


def _answer(text: str, parser: Parser) -> str:
    answer = _unwrapped(text, parser)
    return text.lstrip() if answer is None else answer


def _unwrapped(text: str, parser: Parser) -> str | None:
    """The answer inside its own marks; None where it has none."""
    if parser.answer is None or (opening := re.match(rf"\s*(?:{parser.answer[0]})", text)) is None:
        return None
    return re.split(parser.answer[1], text[opening.end() :], maxsplit=1)[0].lstrip()
