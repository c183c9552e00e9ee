"""Our requests as OpenAI's, and its answers as ours. Pure; a server's words are checked as they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core import sampling
from core.errors import RequestRejected
from core.types import (
    ChatPrompt,
    Completion,
    Delta,
    Feature,
    FinishReason,
    Request,
    Sample,
    Timing,
    TokenLogprob,
)

UNKNOWN_TOKEN = -1
"""The id of a token whose text alone the server gives."""
STANDARD = (
    "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop", "logit_bias",
)  # fmt: skip
"""What OpenAI's API has, beside what is asked for in a form of its own."""
VLLM_ONLY = (
    "top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos",
    "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens", "bad_words",
    "allowed_token_ids",
)  # fmt: skip
"""What vLLM's servers take beside that, under our names."""
REASONS: Mapping[Feature, str] = {
    "tokens": "This server tells nobody how it cuts text into tokens.",
    "chat_options": "This server takes no further variables of a chat template.",
    "completion": "This server takes chats only, no plain text.",
    "structured_outputs": "This server holds answers to no structure.",
    "score": "This server gives no probabilities of given answers.",
    "beam_search": "Beam search is not asked of a server.",
    "top_logprobs": "This server gives no probabilities of tokens.",
    "distribution": "A server gives the probabilities of a few tokens, not of all.",
    "adapters": "A server's LoRA adapters are models of their own: load one by its name.",
}
"""Why servers can't, those that can't."""
_TOP_LEVEL = ("add_generation_prompt", "continue_final_message")
_NO_OPTIONS = frozenset({"messages", "conversation", "chat_template", "tokenize", "return_dict"})
_ENDS: Mapping[str, FinishReason] = {
    "length": "length", "max_tokens": "length", "abort": "abort", "stop": "stop", "tool_calls": "stop",
    "function_call": "stop", "eos": "stop", "repetition": "stop",
}  # fmt: skip
_SCHEMA_NAME = "answer"
_OPENS, _CLOSES = "<think>\n", "\n</think>\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was found out about one model of one server. `structures`: kinds of structured_outputs.

    `refused` has the reason for each sampling parameter that it doesn't take. `max_tokens` is the
    parameter's name there. `context`: its length in tokens, where /tokenize tells it. `is_vllm`:
    answers come with token ids, and vLLM's parameters act.
    `end_ids`: tokens that end an answer, where the server let one be seen. `scores`: a prompt's own
    tokens come with their log-probabilities.
    `priority`: requests may say how urgent they are.
    """

    is_vllm: bool = False
    context: int | None = None
    chat: bool = False
    completion: bool = False
    tokens: bool = False
    scores: bool = False
    logprobs: bool = False
    end_ids: tuple[int, ...] = ()
    structures: tuple[str, ...] = ()
    schema_in_response_format: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    max_tokens: str = "max_tokens"
    priority: bool = False
    usage_in_stream: bool = True
    version: str = ""


# -- what is sent -------------------------------------------------------------------


def body(request: Request, model: str, can: Capabilities, room: int | None) -> tuple[str, dict[str, Any]]:
    """(path, JSON) of a request. `room`: tokens that the context has left for the answer, None if unknown.

    Raises RequestRejected for what this server can't do.
    """
    prompt, params = request.prompt, _sent(request.params, can)
    most = int(params.pop("max_tokens", sampling.BY_NAME["max_tokens"].default))
    values: dict[str, Any] = {"model": model}
    wanted = request.top_logprobs
    if wanted is None and params.pop("logprobs", None) is not None:
        wanted = 0  # the chosen tokens' alone: only their sum is kept
    params.pop("logprobs", None)
    structure = params.pop("structured_outputs", None)
    if structure is not None:
        values |= _structured(structure, can)
    is_chat = isinstance(prompt, ChatPrompt)
    if is_chat:
        path = "/chat/completions"
        values["messages"] = [message.as_dict() for message in prompt.messages]
        if prompt.options:
            _need(can.is_vllm, "chat_options")
            values |= template_options(prompt.options)
        if wanted is not None:
            values |= {"logprobs": True, "top_logprobs": wanted}
    else:
        path = "/completions"
        _need(can.completion, "completion")
        values["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        if wanted is not None:
            values["logprobs"] = wanted
    if wanted is not None:
        _need(can.logprobs, "top_logprobs")
    values[can.max_tokens if is_chat else "max_tokens"] = most if room is None else max(1, min(most, room))
    if can.is_vllm:
        values["return_token_ids"] = True
    if can.priority:
        values["priority"] = int(request.priority)
    return path, values | params


def _sent(params: Mapping[str, Any], can: Capabilities) -> dict[str, Any]:
    """The parameters that matter, in their JSON form: those at rest are left out where they can't be sent."""
    sent = {}
    for name, value in params.items():
        if value is None or value == []:
            continue
        if name in can.refused:
            if not is_at_rest(name, value):
                raise RequestRejected(can.refused[name], hint=f"Leave {name} out.")
        elif name == "logit_bias":
            sent[name] = {str(token): bias for token, bias in value.items()}
        elif not (name == "n" and value == 1):
            sent[name] = value
    return sent


def is_at_rest(name: str, value: Any) -> bool:
    """Whether the parameter does nothing at this value."""
    return value == sampling.BY_NAME[name].default or (name == "top_k" and value == -1)


def _structured(structure: Mapping[str, Any], can: Capabilities) -> dict[str, Any]:
    ((kind, value),) = structure.items()
    _need(bool(can.structures), "structured_outputs")
    if kind not in can.structures:
        known = ", ".join(can.structures)
        raise RequestRejected(
            f"This server can't hold an answer to a {kind}, only to: {known}.",
            hint="Write it as one of these.",
        )
    if not can.schema_in_response_format:
        return {"structured_outputs": {kind: value}}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    shape = {"name": _SCHEMA_NAME, "schema": value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": shape}}


def template_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a chat template as vLLM takes them. Raises RequestRejected for what is none."""
    if wrong := sorted(_NO_OPTIONS.intersection(options)):
        raise RequestRejected(
            f"{wrong[0]!r} is no option of a chat template.", hint="Give variables that the template reads."
        )
    kwargs = {name: value for name, value in options.items() if name not in _TOP_LEVEL}
    top = {name: value for name, value in options.items() if name in _TOP_LEVEL}
    return {**top, **({"chat_template_kwargs": kwargs} if kwargs else {})}


def _need(can: bool, feature: Feature) -> None:
    if not can:
        raise RequestRejected(REASONS[feature], hint="Use another engine for that.")


# -- what comes back ----------------------------------------------------------------


class Reader:
    """Gathers one answer from the chunks of a stream."""

    def __init__(self, wanted: int | None, sent_s: float) -> None:
        self._wanted = wanted
        self._sent_s = sent_s
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._texts: list[str] = []
        self._tokens = 0
        self._ending: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._logprobs: list[TokenLogprob] = []
        self._inside = False

    def add(self, chunk: Mapping[str, Any], at_s: float) -> Delta | None:
        """What the chunk adds to the answer; None where that is nothing."""
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        choice = next(_choices(chunk), None)
        if choice is None:
            return None
        self._ending = _text_or_none(choice.get("finish_reason")) or self._ending
        text, ids = self._text(choice), _token_ids(choice)
        logprobs = () if self._wanted is None else tuple(_logprobs(choice, ids, self._wanted))
        if not text and not ids and not logprobs:
            return None
        tokens = len(ids or logprobs) or 1
        self._first_s = self._first_s or at_s
        self._last_s = at_s
        self._tokens += tokens
        self._texts.append(text)
        self._logprobs += logprobs
        return Delta(text, tokens, at_s, logprobs)

    def _text(self, choice: Mapping[str, Any]) -> str:
        """What it adds to the text; reasoning that the server keeps apart goes between marks."""
        message = choice.get("delta", choice.get("message"))
        if not isinstance(message, dict):
            return _text_or_none(choice.get("text")) or ""
        thought = _text_or_none(message.get("reasoning_content")) or _text_or_none(message.get("reasoning"))
        said = _text_or_none(message.get("content")) or ""
        text = ""
        if thought:
            text = thought if self._inside else _OPENS + thought
            self._inside = True
        if said and self._inside:
            text += _CLOSES
            self._inside = False
        return text + said

    def end(self) -> Completion:
        """The whole answer. Raises RequestRejected where the server never said that it ended."""
        text, logprobs = "".join(self._texts), tuple(self._logprobs)
        if self._ending is None:
            raise RequestRejected("The server's answer ended in the middle.", hint="Try again.")
        if self._ending in ("content_filter", "error"):
            raise RequestRejected(
                f"The server ended this answer: {self._ending}.", hint="Change the prompt, or try again."
            )
        completion = Completion(
            text=text + (_CLOSES if self._inside else ""),
            finish_reason=_ENDS.get(self._ending, "stop"),
            prompt_tokens=0,
            output_tokens=self._tokens
            if (said := _count(self._usage, "completion_tokens")) is None
            else said,
            timing=Timing(self._sent_s, self._first_s, self._last_s),
            cumulative_logprob=math.fsum(one.logprob for one in logprobs) if logprobs else None,
            logprobs=logprobs,
        )
        return self.counted(completion)

    def counted(self, completion: Completion) -> Completion:
        """With the prompt's tokens as the server counted them."""
        details = self._usage.get("prompt_tokens_details")
        return replace(
            completion,
            prompt_tokens=_count(self._usage, "prompt_tokens") or 0,
            cached_tokens=_count(details, "cached_tokens") if isinstance(details, dict) else None,
        )


class Several:
    """Gathers all `n` answers to one request, each with its own token ids (vLLM's)."""

    def __init__(self, n: int, wanted: int | None, sent_s: float) -> None:
        self._readers = [Reader(wanted, sent_s) for _ in range(n)]
        self._whole = Reader(wanted, sent_s)

    def add(self, chunk: Mapping[str, Any], at_s: float) -> Delta | None:
        """How many tokens the chunk adds to all answers; their texts are told at the end."""
        self._whole.add({"usage": chunk.get("usage")}, at_s)
        tokens = 0
        for choice in _choices(chunk):
            place = choice.get("index")
            if type(place) is int and 0 <= place < len(self._readers):
                delta = self._readers[place].add({"choices": [choice]}, at_s)
                tokens += delta.tokens if delta else 0
        return Delta("", tokens, at_s) if tokens else None

    def end(self) -> Completion:
        """The answers as the samples of one. Raises as `Reader.end`."""
        return self._whole.counted(together([reader.end() for reader in self._readers]))


def together(parts: Sequence[Completion]) -> Completion:
    """Answers to the same prompt as the samples of one."""
    first = parts[0]
    firsts = [one.timing.first_token_s for one in parts if one.timing.first_token_s is not None]
    lasts = [one.timing.last_token_s for one in parts if one.timing.last_token_s is not None]
    return replace(
        first,
        output_tokens=sum(one.output_tokens for one in parts),
        timing=Timing(first.timing.sent_s, min(firsts, default=None), max(lasts, default=None)),
        samples=tuple(
            Sample(
                text=one.text,
                finish_reason=one.finish_reason,
                output_tokens=one.output_tokens,
                cumulative_logprob=one.cumulative_logprob,
            )
            for one in parts
        ),
    )


def _choices(chunk: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    choices = chunk.get("choices")
    return (one for one in choices if isinstance(one, dict)) if isinstance(choices, list) else iter(())


def _token_ids(choice: Mapping[str, Any]) -> list[int]:
    ids = choice.get("token_ids")
    return [one for one in ids if type(one) is int] if isinstance(ids, list) else []


def _logprobs(choice: Mapping[str, Any], ids: Sequence[int], wanted: int) -> Iterable[TokenLogprob]:
    """The tokens of a chunk with their alternatives: in the form of chats, or in that of completions."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return
    entries = list(_of_chat(found) if isinstance(found.get("content"), list) else _of_completion(found))
    known = ids if len(ids) == len(entries) else [UNKNOWN_TOKEN] * len(entries)
    for token_id, (text, logprob, others) in zip(known, entries, strict=True):
        ranked = sorted(others, key=lambda one: -one[1])
        rank = 1 + sum(other > logprob for _text, other in ranked)
        alternatives = tuple(
            TokenLogprob(token_id if (other, its) == (text, logprob) else UNKNOWN_TOKEN, other, its, place)
            for place, (other, its) in enumerate(ranked[:wanted], start=1)
        )
        yield TokenLogprob(token_id, text, logprob, rank, alternatives)


_Entry = tuple[str, float, list[tuple[str, float]]]


def _of_chat(found: Mapping[str, Any]) -> Iterable[_Entry]:
    for entry in found["content"]:
        if isinstance(entry, dict):
            others = entry.get("top_logprobs")
            pairs = [
                (str(one.get("token")), _number(one.get("logprob")))
                for one in (others if isinstance(others, list) else ())
                if isinstance(one, dict)
            ]
            yield str(entry.get("token")), _number(entry.get("logprob")), pairs


def _of_completion(found: Mapping[str, Any]) -> Iterable[_Entry]:
    texts, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(texts, list) or not isinstance(values, list):
        return
    tops = found.get("top_logprobs")
    tops = tops if isinstance(tops, list) and len(tops) == len(texts) else [None] * len(texts)
    for text, value, others in zip(texts, values, tops, strict=False):
        pairs = others.items() if isinstance(others, dict) else ()
        yield str(text), _number(value), [(other, _number(its)) for other, its in pairs]


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else -9999.0  # as vLLM writes minus infinity


def _count(values: Any, name: str) -> int | None:
    value = values.get(name)
    return value if type(value) is int and 0 <= value < 1 << 40 else None


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
