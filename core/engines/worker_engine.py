"""A Worker as an Engine: what the engines with a process of their own have in common.

An engine's module makes one of these, or of a subclass, from what its backend says of itself:

    WorkerEngine(spec=spec, info=info, tokenizer=Tokenizer(...), worker=Worker.start(...))

For `score` and `next_logprobs` the backend has methods of these names, or `info.cannot` says why not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from core import sampling
from core.engines.chat_prompts import chat_text
from core.engines.worker import Worker
from core.engines.worker_text import Part, Work
from core.errors import RequestRejected
from core.types import (
    ChatPrompt,
    Completion,
    Delta,
    EngineInfo,
    EngineSpec,
    EngineStats,
    Message,
    Request,
    Sample,
    Timing,
    TokenPiece,
)

if TYPE_CHECKING:
    import numpy as np

_LONG_TEXT = 20_000


class Words(Protocol):
    """The model's tokenizer on this side: `core.engines.tokenizer.Tokenizer` is one."""

    @property
    def chat_template(self) -> str | None: ...

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]: ...

    def encode_prompt(self, text: str) -> list[int]:
        """With the model's own special tokens, unless the text begins with them."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]: ...

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]: ...


class WorkerEngine:
    def __init__(self, *, spec: EngineSpec, info: EngineInfo, tokenizer: Words, worker: Worker) -> None:
        self.spec = spec
        self.info = info
        self._tokenizer = tokenizer
        self._worker = worker

    @property
    def chat_template(self) -> str | None:
        return self._tokenizer.chat_template

    async def stream(self, request: Request) -> AsyncIterator[Delta | Completion]:
        sent = time.monotonic()
        if request.params.get("n", 1) > 1:
            raise RequestRejected("Only one answer can be streamed.", hint="Leave n out.")
        work = await self._work(request)
        answer = _Answer(sent)
        async with contextlib.aclosing(self._worker.generate(work)) as batches:
            async for batch in batches:
                for _, part in batch:
                    yield answer.add(part)
        yield answer.completion(work, ())

    async def complete(self, request: Request) -> Completion:
        sent = time.monotonic()
        work = await self._work(request)
        answers = [_Answer(sent) for _ in range(request.params.get("n", 1))]
        generated = self._worker.generate(work, answers=len(answers))
        async with contextlib.aclosing(generated) as batches:
            async for batch in batches:
                for index, part in batch:
                    answers[index].add(part)
        return answers[0].completion(work, answers)

    async def score(self, request: Request, choices: Sequence[str]) -> list[float]:
        self._refuse_what_it_cannot(request, "score")
        ids = await self._prompt_ids(request)
        answers = [tuple(tokens) for tokens in self._tokenizer.encode(choices)]
        if not answers or not all(answers):
            raise RequestRejected("A choice is empty, or there is none.", hint="Give choices with text.")
        longest = len(ids) + max(map(len, answers))
        if longest >= self.info.max_model_len:
            raise RequestRejected(
                f"The prompt and the longest choice have {longest} tokens; the context holds "
                f"{self.info.max_model_len}.",
                hint="Shorten the prompt.",
            )
        return await self._worker.ask("score", tuple(ids), answers)

    async def next_logprobs(self, request: Request) -> np.ndarray:
        self._refuse_what_it_cannot(request, "distribution")
        return await self._worker.ask("next_logprobs", tuple(await self._prompt_ids(request)))

    async def _work(self, request: Request) -> Work:
        """Our request as the worker's. Raises RequestRejected."""
        self._refuse_what_it_cannot(request)
        params = {name: value for name, value in request.params.items() if value is not None and name != "n"}
        if request.params.get("n", 1) > 1 and params.get("temperature") == 0:
            raise RequestRejected("n must be 1 at temperature 0.", hint="Change the parameters.")
        return Work(
            prompt_ids=tuple(await self._prompt_ids(request)),
            params=params,
            top_logprobs=request.top_logprobs,
            priority=int(request.priority),
        )

    def _refuse_what_it_cannot(self, request: Request, *features: str) -> None:
        """Raise RequestRejected with the engine's own reason for what it lacks and the request asks for."""
        cannot = self.info.cannot
        if request.adapter is not None:
            features += ("adapters",)
        if request.top_logprobs is not None:
            features += ("top_logprobs",)
        for feature in features:
            if feature in cannot:
                raise RequestRejected(cannot[feature], hint="Load the model with another engine for it.")
        for name, value in request.params.items():
            row = sampling.find(name)
            reason = self.info.cannot_params.get(name) or cannot.get(row.feature)
            if reason and value is not None and value != row.default:
                raise RequestRejected(reason, hint=f"Leave {name} out.")

    async def _prompt_ids(self, request: Request) -> list[int]:
        prompt = request.prompt
        if isinstance(prompt, str | ChatPrompt):
            text, special = (prompt, True) if isinstance(prompt, str) else chat_text(prompt, self)
            if len(text) > _LONG_TEXT:
                ids = await asyncio.to_thread(self._encode, text, special)
            else:
                ids = self._encode(text, special)
        else:
            ids = list(prompt)
        if not ids:
            raise RequestRejected("The prompt is empty.", hint="Write something.")
        limit = self.info.max_model_len
        if len(ids) >= limit:
            raise RequestRejected(
                f"The prompt has {len(ids)} tokens; the context holds {limit}, the answer included.",
                hint="Shorten the prompt.",
            )
        return ids

    def _encode(self, text: str, special: bool) -> list[int]:
        return self._tokenizer.encode_prompt(text) if special else self._tokenizer.encode([text])[0]

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        return self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        return self._tokenizer.pieces(token_ids)

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        return self._tokenizer.render_chat(chats, options)

    def stats(self) -> EngineStats:
        return self._worker.stats()

    async def reset_prefix_cache(self) -> bool:
        return False  # llama.cpp takes over what sequences have in common; transformers keeps nothing

    async def check(self) -> None:
        self._worker.check()

    async def warm_up(self) -> None:
        """One short answer, so that the first user doesn't wait for what is done only once."""
        ids = self._tokenizer.encode_prompt("Hello, how are you today?")
        await self.complete(Request(id="warm-up", prompt=ids, params={"max_tokens": 4, "ignore_eos": True}))

    async def close(self) -> None:
        await self._worker.close()


class _Answer:
    """One answer as it grows."""

    def __init__(self, sent_s: float) -> None:
        self._sent_s = sent_s
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._parts: list[Part] = []

    def add(self, part: Part) -> Delta:
        self._last_s = time.monotonic()
        self._first_s = self._first_s or self._last_s
        self._parts.append(part)
        return Delta(part.text, 1, self._last_s, (part.entry,) if part.entry else ())

    def sample(self, work: Work) -> Sample:
        logprobs = [part.logprob for part in self._parts if part.logprob is not None]
        return Sample(
            text="".join(part.text for part in self._parts),
            finish_reason=self._parts[-1].finish_reason or "abort",
            output_tokens=len(self._parts),
            cumulative_logprob=sum(logprobs) if work.wants_logprobs else None,
        )

    def completion(self, work: Work, answers: Sequence[_Answer]) -> Completion:
        """This answer's, with all of `answers` as samples where there are several."""
        first = self.sample(work)
        samples = tuple(answer.sample(work) for answer in answers) if len(answers) > 1 else ()
        return Completion(
            text=first.text,
            finish_reason=first.finish_reason,
            prompt_tokens=len(work.prompt_ids),
            output_tokens=sum(each.output_tokens for each in samples) or first.output_tokens,
            timing=Timing(
                self._sent_s,
                min((answer._first_s for answer in answers if answer._first_s), default=self._first_s),
                max((answer._last_s for answer in answers if answer._last_s), default=self._last_s),
            ),
            cumulative_logprob=first.cumulative_logprob,
            samples=samples,
            logprobs=tuple(part.entry for part in self._parts if part.entry is not None),
        )
