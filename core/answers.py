"""One answer while it is generated: streamed on the runtime's loop, read from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.chat_templates import fit
from core.errors import WorkbenchError
from core.runtime import Runtime
from core.sampling import BY_NAME
from core.store import MessageState, new_id
from core.types import Completion, Message, Request, Timing

_log = logging.getLogger(__name__)
_SAVE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAnswer:
    """What there is of an answer now. `phase` "waiting": for the engine to be loaded."""

    text: str
    phase: Literal["waiting", "generating", "stopping"]
    output_tokens: int
    ttft_s: float | None
    output_tokens_per_s: float | None


class Answer:
    """Generates one answer with `run`, until it ends, fails or is stopped."""

    def __init__(self, messages: Sequence[Message], params: Mapping[str, Any]) -> None:
        self.state: MessageState = "generating"
        self._messages = list(messages)
        self._params = dict(params)
        self._parts: list[str] = []
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

    @property
    def text(self) -> str:
        return self._completion.text if self._completion else "".join(tuple(self._parts))

    @property
    def timing(self) -> Timing | None:
        """As the engine measured it, or for an unfinished answer as its tokens came."""
        if self._completion:
            return self._completion.timing
        return None if self._sent_s is None else Timing(self._sent_s, self._first_s, self._last_s)

    @property
    def details(self) -> dict[str, Any]:
        """The figures kept with the text: JSON, None where not measured. Times in seconds."""
        timing, completion = self.timing, self._completion
        return {
            "params": self._params,
            "model": self._model,
            "prompt_tokens": completion.prompt_tokens if completion else self._prompt_tokens,
            "cached_tokens": completion.cached_tokens if completion else None,
            "output_tokens": completion.output_tokens if completion else self._output_tokens,
            "ttft_s": timing.ttft_s if timing else None,
            "output_tokens_per_s": self._tokens_per_s(),
            "finish_reason": self._finish_reason(),
            "dropped_turns": self._dropped_turns,
            "error": self._error,
        }

    def live(self) -> LiveAnswer:
        """A snapshot for drawing."""
        waiting = self._sent_s is None
        phase = "stopping" if self._stop_as else "waiting" if waiting else "generating"
        timing = self.timing
        return LiveAnswer(
            text=self.text,
            phase=phase,
            output_tokens=self._output_tokens,
            ttft_s=timing.ttft_s if timing else None,
            output_tokens_per_s=self._tokens_per_s(),
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
        engine = await runtime.wait_engine()
        self._model = engine.info.model
        max_tokens = self._params.get("max_tokens", BY_NAME["max_tokens"].default)
        # long conversations take a while to tokenize: not on the loop that feeds everybody's answers
        prompt = await asyncio.to_thread(fit, self._messages, engine, max_tokens)
        self._prompt_tokens, self._dropped_turns = prompt.tokens, prompt.dropped_turns
        request = Request(id=f"chat-{new_id()}", prompt=prompt.token_ids, params=self._params)
        self._sent_s = time.monotonic()
        async with contextlib.aclosing(engine.stream(request)) as stream:
            async for item in stream:
                if isinstance(item, Completion):
                    self._completion = item
                    continue
                if item.tokens:
                    self._first_s = self._first_s or item.at_s
                    self._last_s = item.at_s
                    self._output_tokens += item.tokens
                self._parts.append(item.text)

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

    def _tokens_per_s(self) -> float | None:
        timing = self.timing
        tokens = self._completion.output_tokens if self._completion else self._output_tokens
        return timing.output_tokens_per_s(tokens) if timing else None

    def _finish_reason(self) -> str | None:
        if self._completion:
            return self._completion.finish_reason
        return "abort" if self.state in ("stopped", "interrupted") else None


def in_words(state: str, details: Mapping[str, Any]) -> str:
    """Why an answer ended, for a person: "stopped by you", "cut at max_tokens"; "" for a normal end."""
    if state in ("stopped", "interrupted", "error"):
        return {"stopped": "stopped by you", "interrupted": "interrupted", "error": "failed"}[state]
    if details.get("finish_reason") != "length":
        return ""
    limit = (details.get("params") or {}).get("max_tokens")
    within = limit is not None and (details.get("output_tokens") or 0) < limit
    return "cut: the context is full" if within else "cut at max_tokens"
