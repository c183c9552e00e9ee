"""Tokens become an answer: text that is complete, what ends it, its log-probabilities. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from core import sampling
from core.types import FinishReason, TokenLogprob

Key = tuple[int, int]
"""A sequence: the request's number, and which of its answers."""

_CONTEXT = 6
"""Tokens of the prompt's end that are decoded with the answer's first: some begin with a space only then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request as a worker gets it. `params` holds names of `core.sampling`, without n.

    `top_logprobs`: as in `core.types.Request`. `priority`: the lowest goes first.
    """

    prompt_ids: tuple[int, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    top_logprobs: int | None = None
    priority: int = 0

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or self.params.get("logprobs") is not None

    @property
    def max_tokens(self) -> int:
        return self.params.get("max_tokens") or sampling.BY_NAME["max_tokens"].default


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token in one place: natural logarithm of the model's own probability, and its rank from 1."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was written. `chosen` and the likeliest, by rank: where log-probabilities are wanted."""

    token_id: int
    chosen: Candidate | None = None
    likeliest: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What one token added to an answer; the last part has the finish reason.

    `logprob` is the chosen token's, `entry` the same with alternatives where `top_logprobs` was asked for.
    """

    text: str
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    entry: TokenLogprob | None = None


class Vocabulary(Protocol):
    """The part of a Backend that knows about text."""

    context_tokens: int
    end_ids: frozenset[int]

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str: ...

    def texts(self, token_ids: Sequence[int]) -> list[str]: ...


class Writer:
    """The answer of one sequence, token by token, as vLLM would write it."""

    def __init__(self, work: Work, vocabulary: Vocabulary) -> None:
        params = work.params
        self._work = work
        self._vocabulary = vocabulary
        self._limit = min(work.max_tokens, vocabulary.context_tokens - len(work.prompt_ids))
        self._least = params.get("min_tokens", 0)
        self._special = not params.get("skip_special_tokens", True)
        self._ends = frozenset() if params.get("ignore_eos") else vocabulary.end_ids
        self._ends |= frozenset(params.get("stop_token_ids") or ())
        self._stops = tuple(params.get("stop") or ())
        self._keep_stop = bool(params.get("include_stop_str_in_output"))
        # what may turn out to be the beginning of a stop text isn't shown yet
        longest = max(map(len, self._stops), default=1)
        self._held = 0 if self._keep_stop else longest - 1
        self._looked_back = longest - 1
        self._tail = list(work.prompt_ids[-_CONTEXT:])
        self._from, self._read = 0, len(self._tail)
        self._tokens = 0
        self._text = ""
        self._shown = 0
        self._checked = 0

    def take(self, token: Token) -> Part:
        self._tokens += 1
        reason: FinishReason | None = None
        if token.token_id in self._ends and self._tokens > self._least:
            reason = "stop"
        elif self._tokens >= self._limit:
            reason = "length"
        if reason != "stop" or self._keep_stop:
            self._tail.append(token.token_id)
        self._text += self._decode(to_the_end=reason is not None)
        if self._cut_at_stop():
            reason = "stop"
        end = len(self._text) if reason else max(self._shown, len(self._text) - self._held)
        shown, self._shown = self._text[self._shown : end], end
        return Part(shown, reason, token.chosen.logprob if token.chosen else None, self._entry(token))

    def _decode(self, *, to_the_end: bool) -> str:
        """Text that is new and complete. Tokens are decoded behind others, as spaces depend on them."""
        before = self._vocabulary.decode(self._tail[self._from : self._read], special=self._special)
        now = self._vocabulary.decode(self._tail[self._from :], special=self._special)
        if len(now) <= len(before) or (now.endswith("\ufffd") and not to_the_end):
            return ""
        # what was decoded is forgotten, but for the tokens that the next are decoded behind
        del self._tail[: self._read]
        self._from, self._read = 0, len(self._tail)
        return now[len(before) :]

    def _cut_at_stop(self) -> bool:
        """Cut the text at the first stop text in it. Nothing stops it before `min_tokens`."""
        if self._tokens <= self._least:
            self._checked = len(self._text)
            return False
        begin = max(0, self._checked - self._looked_back)
        found = [(at, stop) for stop in self._stops if (at := self._text.find(stop, begin)) >= 0]
        self._checked = len(self._text)
        if not found:
            return False
        at, stop = min(found)
        self._text = self._text[: at + len(stop) if self._keep_stop else at]
        return True

    def _entry(self, token: Token) -> TokenLogprob | None:
        if self._work.top_logprobs is None or token.chosen is None:
            return None
        likeliest = token.likeliest[: self._work.top_logprobs]
        texts = self._vocabulary.texts([token.token_id, *(each.token_id for each in likeliest)])
        alternatives = tuple(
            TokenLogprob(each.token_id, text, each.logprob, each.rank)
            for each, text in zip(likeliest, texts[1:], strict=True)
        )
        chosen = token.chosen
        return TokenLogprob(chosen.token_id, texts[0], chosen.logprob, chosen.rank, alternatives)
