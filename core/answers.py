"""One answer while it is generated: streamed on the runtime's loop, read from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from core import prompt_styles, reasoning
from core.chat_templates import FittedPrompt, fit
from core.engines.base import Engine
from core.errors import WorkbenchError
from core.prompt_styles import Wrapper
from core.runtime import Runtime
from core.sampling import BY_NAME
from core.store import MessageState, new_id
from core.types import Completion, Delta, LoraAdapter, Message, Priority, Request, Timing, TokenLogprob

_log = logging.getLogger(__name__)
_SAVE_EVERY_S = 0.5
_LOGPROB_DIGITS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAnswer:
    """What there is of an answer now. `phase` "waiting": for the engine to be loaded.

    `begins_inside`: the prompt ended with a mark that opens the model's reasoning.
    """

    text: str
    phase: Literal["waiting", "generating", "stopping"]
    output_tokens: int
    ttft_s: float | None
    output_tokens_per_s: float | None
    begins_inside: bool = False


@dataclass(frozen=True, slots=True)
class Earlier:
    """What there is already of an answer that goes on: its text, and its details as kept."""

    text: str
    details: Mapping[str, Any]


class Answer:
    """Generates one answer with `run`, until it ends, fails or is stopped.

    `style`, `wrapper` and `template_options` as in `core.chat_templates.fit`. With `top_logprobs` the
    details have each token's probability and that many alternatives, where the engine can tell.
    With `earlier` the answer goes on in place: text and figures are those of both parts together.
    `adapter`: the LoRA adapter that answers.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        params: Mapping[str, Any],
        *,
        style: str = prompt_styles.CHAT,
        wrapper: Wrapper | None = None,
        template_options: Mapping[str, Any] | None = None,
        top_logprobs: int | None = None,
        priority: Priority = Priority.CHAT,
        earlier: Earlier | None = None,
        adapter: LoraAdapter | None = None,
    ) -> None:
        self.state: MessageState = "generating"
        self._params = dict(params)
        self._style, self._wrapper = style, wrapper
        self._stops = prompt_styles.stops(style, wrapper)
        self._prompt = _Prompt(
            list(messages),
            params.get("max_tokens", BY_NAME["max_tokens"].default),
            {
                "style": style,
                "wrapper": wrapper,
                "options": template_options,
                "continued": earlier.text if earlier else "",
            },
        )
        self._top_logprobs = top_logprobs
        self._priority = priority
        self._adapter = adapter
        self._earlier = earlier
        self._parts: list[str] = []
        self._logprobs: list[list[Any]] = []
        self._begins_inside = False
        self._model = ""
        self._prompt_tokens: int | None = None
        self._dropped_turns = 0
        self._output_tokens = 0
        self._sent_s: float | None = None
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._completion: Completion | None = None
        self._error = ""
        self._stop_as: MessageState | None = None
        self._task: asyncio.Task[None] | None = None

    def version(self, params: Mapping[str, Any]) -> Answer:
        """Another answer to the same prompt, which is made once for both; `max_tokens` is the first's."""
        other = copy.copy(self)  # neither has begun
        other._params, other._parts, other._logprobs = dict(params), [], []
        return other

    @property
    def text(self) -> str:
        added = self._completion.text if self._completion else "".join(tuple(self._parts))
        return self._earlier.text + added if self._earlier else added

    @property
    def timing(self) -> Timing | None:
        """As the engine measured it, or for an unfinished answer as its tokens came."""
        if self._completion:
            return self._completion.timing
        return None if self._sent_s is None else Timing(self._sent_s, self._first_s, self._last_s)

    @property
    def details(self) -> dict[str, Any]:
        """The figures kept with the text: JSON, None where not measured. Times in seconds."""
        completion = self._completion
        figures = {
            "params": self._params,
            "model": self._model,
            "prompt_tokens": completion.prompt_tokens if completion else self._prompt_tokens,
            "cached_tokens": completion.cached_tokens if completion else None,
            "output_tokens": self._tokens(),
            "ttft_s": self._ttft_s(),
            "output_tokens_per_s": self._tokens_per_s(),
            "finish_reason": self._finish_reason(),
            "dropped_turns": self._dropped_turns,
            "error": self._error,
        }
        if self._begins_inside:  # `core.reasoning` can't know it from the answer
            figures["begins_inside"] = True
        if self._adapter is not None:
            figures["adapter"] = self._adapter.name
        return _added_up(self._earlier.details, figures) if self._earlier else figures

    @property
    def logprobs(self) -> list[list[Any]] | None:
        """The tokens as `read_logprobs` reads them, of the whole answer; None where a part has none."""
        earlier = list(self._earlier.details.get("logprobs", ())) if self._earlier else []
        lacks_earlier = bool(self._earlier and self._earlier.text and not earlier)
        lacks_added = bool(self._tokens() and not self._logprobs)
        return None if lacks_earlier or lacks_added else [*earlier, *self._logprobs] or None

    def live(self) -> LiveAnswer:
        """A snapshot for drawing."""
        details, waiting = self.details, self._sent_s is None
        return LiveAnswer(
            text=self.text,
            phase="stopping" if self._stop_as else "waiting" if waiting else "generating",
            output_tokens=details["output_tokens"],
            ttft_s=details["ttft_s"],
            output_tokens_per_s=details["output_tokens_per_s"],
            begins_inside=details.get("begins_inside", False),
        )

    async def run(self, runtime: Runtime, save: Callable[[], Awaitable[None]]) -> None:
        """Generate, calling `save` about every half second while text comes, and once at the end.

        The generator is a task of its own: cancelling it closes the stream, which
        aborts the request in the engine, and the last save still happens.
        """
        self._task = asyncio.create_task(self._generate(runtime))
        if self._stop_as:
            self._task.cancel()
        saved = 0
        try:
            while True:
                done, _ = await asyncio.wait({self._task}, timeout=_SAVE_EVERY_S)
                if done:
                    break
                if len(self._parts) > saved:
                    saved = len(self._parts)
                    await save()
        except asyncio.CancelledError:  # the loop is being closed under us
            self._stop_as = self._stop_as or "interrupted"
            self._task.cancel()
            await asyncio.wait({self._task})
            self._end()
            await save()
            raise
        self._end()
        await save()

    def stop(self, runtime: Runtime, state: MessageState = "stopped") -> None:
        """Ask it to end as `state`, keeping its text; returns at once."""
        self._stop_as = self._stop_as or state
        runtime.spawn(self._cancel())

    async def _cancel(self) -> None:
        if self._task:
            self._task.cancel()

    async def _generate(self, runtime: Runtime) -> None:
        if self._priority is Priority.CHAT:  # it takes one of the slots that are kept for chats
            await self._stream(runtime)
            return
        async with runtime.slots.held(self._priority):
            await self._stream(runtime)

    async def _stream(self, runtime: Runtime) -> None:
        engine = await runtime.wait_engine()
        self._model = engine.info.model
        request = await self._request(engine)
        self._sent_s = time.monotonic()
        async with contextlib.aclosing(engine.stream(request)) as stream:
            async for item in stream:
                if isinstance(item, Completion):
                    self._completion = self._cut(item) if "beam_width" in request.params else item
                else:
                    self._add(item)

    async def _request(self, engine: Engine) -> Request:
        prompt = await self._prompt.fitted(engine)
        continued = self._earlier.text if self._earlier else ""
        self._prompt_tokens, self._dropped_turns = prompt.tokens, prompt.dropped_turns
        self._begins_inside = reasoning.opened_by(prompt.text.removesuffix(continued))
        params = self._params
        if self._stops:  # a token's name may have to be asked for: not on the loop
            params = await asyncio.to_thread(
                prompt_styles.with_stops, self._params, engine, self._style, self._wrapper
            )
        return Request(
            id=f"chat-{new_id()}",
            prompt=prompt.prompt,
            params=params,
            priority=self._priority,
            # a look at the answer, not a part of what is asked: an engine without it answers as well
            top_logprobs=None if "top_logprobs" in engine.info.cannot else self._top_logprobs,
            adapter=self._adapter,
        )

    def _add(self, delta: Delta) -> None:
        if delta.tokens:
            self._first_s = self._first_s or delta.at_s
            self._last_s = delta.at_s
            self._output_tokens += delta.tokens
        # a piece at a time: thousands of tokens at once would hold up the loop
        self._logprobs += [_as_json(token) for token in delta.logprobs]
        self._parts.append(delta.text)

    def _cut(self, found: Completion) -> Completion:
        """A beam search knows no stop texts: the style's own would be followed by a made-up next turn."""
        text = found.text
        for stop in self._stops:
            text = text.partition(stop)[0]
        return found if text == found.text else replace(found, text=text, finish_reason="stop")

    def _end(self) -> None:
        """Turn how the generator ended into the answer's state."""
        if self._task.cancelled():
            self.state = self._stop_as or "interrupted"
            return
        error = self._task.exception()
        if error is None:
            self.state = "complete"
            return
        self.state = "error"
        if isinstance(error, WorkbenchError):
            self._error = str(error)
        else:
            self._error = f"Unexpected {type(error).__name__}: {error}"
            _log.error("An answer failed", exc_info=error)

    def _tokens(self) -> int:
        return self._completion.output_tokens if self._completion else self._output_tokens

    def _ttft_s(self) -> float | None:
        return self.timing.ttft_s if self.timing else None

    def _tokens_per_s(self) -> float | None:
        return self.timing.output_tokens_per_s(self._tokens()) if self.timing else None

    def _finish_reason(self) -> str | None:
        if self._completion:
            return self._completion.finish_reason
        return "abort" if self.state in ("stopped", "interrupted") else None


class _Prompt:
    """Messages that become a prompt when the engine is there: once, for all answers that share it."""

    def __init__(self, messages: Sequence[Message], max_tokens: int, how: Mapping[str, Any]) -> None:
        self._messages = messages
        self._max_tokens = max_tokens
        self._how = how
        self._making = asyncio.Lock()
        self._made: FittedPrompt | None = None

    async def fitted(self, engine: Engine) -> FittedPrompt:
        """Raises as `core.chat_templates.fit`."""
        async with self._making:
            if self._made is None:
                # long conversations take a while to tokenize: not on the loop that feeds all answers
                self._made = await asyncio.to_thread(
                    fit, self._messages, engine, self._max_tokens, **self._how
                )
        return self._made


def _added_up(earlier: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an answer and of what was added to it, as if it had come in one piece.

    "part_tokens" are the tokens of the last part, which is what max_tokens was for.
    """
    tokens = earlier.get("output_tokens") or 0
    together = {
        **added,
        "output_tokens": tokens + added["output_tokens"],
        "part_tokens": added["output_tokens"],
    }
    together["model"] = added["model"] or earlier.get("model", "")
    together["dropped_turns"] = max(added["dropped_turns"], earlier.get("dropped_turns") or 0)
    together |= {name: earlier[name] for name in ("edited", "begins_inside") if earlier.get(name)}
    for name in ("prompt_tokens", "cached_tokens", "ttft_s"):  # the wait and the prompt were the first part's
        if tokens and earlier.get(name) is not None:
            together[name] = earlier[name]
    parts = [(one.get("output_tokens"), one.get("output_tokens_per_s")) for one in (earlier, added)]
    measured = [(count - 1, rate) for count, rate in parts if count and count > 1 and rate]
    seconds = sum(count / rate for count, rate in measured)
    together["output_tokens_per_s"] = sum(count for count, _ in measured) / seconds if seconds else None
    return together


def read_logprobs(details: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """The tokens of a kept answer with their probabilities; empty where they were not asked for."""
    return tuple(map(_from_json, details.get("logprobs") or ()))


def _as_json(token: TokenLogprob) -> list[Any]:
    """Compact: [token id, text, logprob, rank, alternatives], an alternative without the last."""
    alternatives = [_alone(one) for one in token.alternatives]
    return [*_alone(token), alternatives]


def _alone(token: TokenLogprob) -> list[Any]:
    return [token.token_id, token.text, round(token.logprob, _LOGPROB_DIGITS), token.rank]


def _from_json(kept: Sequence[Any]) -> TokenLogprob:
    token_id, text, logprob, rank, alternatives = kept
    return TokenLogprob(token_id, text, logprob, rank, tuple(TokenLogprob(*one) for one in alternatives))


def in_words(state: str, details: Mapping[str, Any]) -> str:
    """Why an answer ended, for a person: "stopped by you", "cut at max_tokens"; "" for a normal end."""
    if state in ("stopped", "interrupted", "error"):
        return {"stopped": "stopped by you", "interrupted": "interrupted", "error": "failed"}[state]
    if details.get("finish_reason") != "length":
        return ""
    limit = (details.get("params") or {}).get("max_tokens")
    tokens = details.get("part_tokens", details.get("output_tokens")) or 0
    within = limit is not None and tokens < limit
    return "cut: the context is full" if within else "cut at max_tokens"
