"""Any server with OpenAI's API as an Engine: vLLM's own, a cluster of them behind a router, Ray Serve LLM.

Nothing is computed here. What the server can do is found out when it is loaded (`openai_probe`) and
kept for a day. With vLLM's /tokenize, prompts are sent as token ids, as to an engine on this machine;
without, conversations are sent as messages, and nobody counts their tokens beforehand.

Where the server gives no ids of tokens, `TokenLogprob.token_id` is -1, and `rank` is the place among
the alternatives that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from core.endpoints import checked_url, secret_name
from core.engines.base import Report
from core.engines.chat_prompts import chat_text
from core.engines.engine_log import EngineLog
from core.engines.guard import Guard
from core.engines.openai_client import Broken, Refused, Server
from core.engines.openai_info import describe, find_model, keep, known, known_path
from core.engines.openai_params import Capabilities, Reader, Several, body, together
from core.engines.openai_probe import find_out
from core.engines.openai_scoring import scores
from core.engines.openai_tokens import Tokens
from core.errors import EngineDied, EngineLoadError, ParameterError, RequestRejected
from core.prompts import plain_text
from core.secrets import Secrets
from core.settings import Settings
from core.types import (
    ChatPrompt,
    Completion,
    Delta,
    EngineInfo,
    EngineSpec,
    EngineStats,
    Feature,
    Message,
    Prompt,
    Request,
    TokenPiece,
)

if TYPE_CHECKING:
    import numpy as np

_LOOK_EVERY_S = 10.0
_WHOLE = 1 << 20  # tokens to a chunk: the first at once, the rest together
_BROKEN_TRIES = 3
_BEGINNING = re.compile(r"<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>")
_ABOUT_LENGTH = re.compile(r"context|max_tokens|max_completion_tokens|too (?:long|large)", re.IGNORECASE)
_lost: set[tuple[str, str]] = set()
"""(address, model) of engines that died: to load them again is to wait for their server."""


def load(
    spec: EngineSpec,
    settings: Settings,
    *,
    report: Report,
    log: EngineLog,
    guard: Guard,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> OpenAIEngine:
    """Find the model on the server at `spec.base_url` and what can be asked of it.

    A server that was lost is waited for, as long as somebody wants it. Raises EngineLoadError.
    """
    began = time.monotonic()
    try:
        base_url = checked_url(spec.base_url or "")
    except ParameterError as error:
        raise EngineLoadError(error.message, hint=error.hint) from error
    key = Secrets(settings).find(secret_name(base_url))
    server = Server(base_url, key)
    is_lost = (base_url, spec.model) in _lost
    try:
        try:
            model = find_model(server, spec, report, run, waits=is_lost)
            path = known_path(settings, base_url, model.name)
            can = None if is_lost else known(path)
            if can is None:
                report("Finding out what the server can do")
                can = run(find_out(server, model.name))
                keep(path, can)
            run(server.look_for_health())
        except EngineDied as error:
            raise EngineLoadError(
                f"{server.host} can't be reached.", hint="Check the address, and that the server runs."
            ) from error
        except RequestRejected as error:
            raise EngineLoadError(error.message, hint=error.hint) from error
    except BaseException:
        run(server.close())
        raise
    _lost.discard((base_url, spec.model))
    tokens = Tokens(server.root, key, model.name) if can.tokens else None
    return OpenAIEngine(spec, describe(server, spec, model, can, began), server, can, tokens)


def forget_known(settings: Settings, base_url: str, model: str) -> None:
    """Have it found out anew what the server can do, when it is loaded next."""
    known_path(settings, base_url, model).unlink(missing_ok=True)


class OpenAIEngine:
    """One model of one server."""

    chat_template: str | None = None

    def __init__(
        self, spec: EngineSpec, info: EngineInfo, server: Server, can: Capabilities, tokens: Tokens | None
    ) -> None:
        self.spec = spec
        self.info = info
        self._server = server
        self._can = can
        self._tokens = tokens
        self._gone: EngineDied | None = None
        self._closed = False
        self._look: asyncio.Task[None] | None = None
        self._looked_at = time.monotonic()
        self._running = 0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._queried = 0
        self._cached = 0

    async def stream(self, request: Request) -> AsyncIterator[Delta | Completion]:
        if request.params.get("n", 1) > 1:
            raise RequestRejected("Only one answer can be streamed.", hint="Leave n out.")
        async with contextlib.aclosing(self._answer(request)) as items:
            async for item in items:
                yield item

    async def complete(self, request: Request) -> Completion:
        samples = request.params.get("n", 1)
        if samples > 1 and not self._can.is_vllm:
            return await self._separately(request, samples)
        for tries_left in reversed(range(_BROKEN_TRIES)):
            try:
                async with contextlib.aclosing(self._answer(request, stream_interval=_WHOLE)) as items:
                    async for item in items:
                        if isinstance(item, Completion):
                            return item
            except Broken:  # nobody has seen a part of it yet
                if not tries_left:
                    raise
        raise AssertionError("the stream ends with a Completion")

    async def _answer(
        self, request: Request, *, stream_interval: int | None = None
    ) -> AsyncIterator[Delta | Completion]:
        sent = time.monotonic()
        path, asked = await self._asked(request)
        if self._can.usage_in_stream:
            asked["stream_options"] = {"include_usage": True}
        if stream_interval is not None and self._can.is_vllm:
            asked["stream_interval"] = stream_interval
        samples, wanted = request.params.get("n", 1), _wanted(request)
        reader = Reader(wanted, sent) if samples == 1 else Several(samples, wanted, sent)
        with self._counted():
            try:
                stream = self._server.stream(path, asked)
                async with contextlib.aclosing(self._fitted(stream, path, asked, request)) as chunks:
                    async for chunk in chunks:
                        delta = reader.add(chunk, time.monotonic())
                        if delta is not None:
                            self._output_tokens += delta.tokens
                            yield delta
            except EngineDied as error:
                raise self._lose(error) from error
        completion = reader.end()
        self._count(completion)
        yield completion

    async def _fitted(
        self, stream: AsyncIterator[dict[str, Any]], path: str, asked: Mapping[str, Any], request: Request
    ) -> AsyncIterator[dict[str, Any]]:
        """The stream's chunks; asked once more with what the context has left, where max_tokens is too much.

        An engine on this machine does the same. Only the server knows how long the prompt is.
        """
        try:
            async with contextlib.aclosing(stream) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except Refused as error:
            if not self._may_be_max_tokens(error, request):
                raise
        without = {
            name: value for name, value in asked.items() if name not in ("max_tokens", self._can.max_tokens)
        }
        async with contextlib.aclosing(self._server.stream(path, without)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _may_be_max_tokens(self, error: Refused, request: Request) -> bool:
        """Never for plain text: OpenAI's own completions end after 16 tokens where nothing is said."""
        is_chat = isinstance(request.prompt, ChatPrompt)
        return is_chat and error.status == 400 and _ABOUT_LENGTH.search(error.message) is not None

    async def _separately(self, request: Request, samples: int) -> Completion:
        """A request for each: servers other than vLLM count all their tokens together, or know no n."""

        def one(place: int) -> Request:
            params = {name: value for name, value in request.params.items() if name != "n"}
            if params.get("seed") is not None:
                params["seed"] += place
            return dataclasses.replace(request, id=f"{request.id}-{place}", params=params)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.complete(one(place))) for place in range(samples)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # the others met the same
        return together([task.result() for task in tasks])

    async def score(self, request: Request, choices: Sequence[str]) -> list[float]:
        if "score" in self.info.cannot:
            self._refuse("score")
        ids = await asyncio.to_thread(self._prompt_ids, request.prompt)
        answers = await asyncio.to_thread(self.encode, choices)
        if not answers or not all(answers):
            raise RequestRejected("A choice is empty, or there is none.", hint="Give choices with text.")
        longest = len(ids) + max(map(len, answers)) + 1  # the token that ends it may be asked for as well
        self._room(longest)
        end_id = self._can.end_ids[0] if self._can.end_ids else None
        with self._counted():
            try:
                return await scores(self._server, self.info.model, ids, answers, end_id)
            except EngineDied as error:
                raise self._lose(error) from error

    async def next_logprobs(self, request: Request) -> np.ndarray:
        self._refuse("distribution")

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        return self._its_tokens().encode(texts, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._its_tokens().decode(token_ids)

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        return self._its_tokens().pieces(token_ids)

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        return self._its_tokens().render_chat(chats, options)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            prefix_queries=self._queried,
            prefix_hits=self._cached,
        )

    async def reset_prefix_cache(self) -> bool:
        return False  # it is the server's, and others use it

    async def check(self) -> None:
        """Looks at the server now and then, and tells what the last look saw: every request asks."""
        if self._gone is not None:
            raise self._gone
        is_due = time.monotonic() - self._looked_at > _LOOK_EVERY_S
        if is_due and not self._closed and (self._look is None or self._look.done()):
            self._look = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        if not await self._server.is_alive() and not await self._server.is_alive():
            self._lose(self._server.died())
        self._looked_at = time.monotonic()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._look is not None:
            self._look.cancel()
        if self._tokens is not None:
            self._tokens.close()
        await self._server.close()

    # -- the inside --------------------------------------------------------------------

    async def _asked(self, request: Request) -> tuple[str, dict[str, Any]]:
        """(path, JSON) of a request, its prompt as token ids where the server has them."""
        if self._closed:
            raise EngineDied("The engine was unloaded.", hint="Load it again.")
        if request.adapter is not None:
            self._refuse("adapters")
        prompt, room = request.prompt, None
        if isinstance(prompt, ChatPrompt) and not self._can.chat:
            prompt = plain_text(prompt.messages)
        if isinstance(prompt, str) and self._tokens is not None:
            prompt = await asyncio.to_thread(self._prompt_ids, prompt)
        if not isinstance(prompt, ChatPrompt) and not len(prompt):
            raise RequestRejected("The prompt is empty.", hint="Write something.")
        if not isinstance(prompt, ChatPrompt | str):
            self._its_tokens()
            room = self._room(len(prompt))
        elif self._tokens is not None and self.spec.max_model_len is not None:
            # the server doesn't know of this limit, which may be less than its own
            room = self._room(len(await asyncio.to_thread(self._prompt_ids, prompt)))
        request = dataclasses.replace(request, prompt=prompt)
        return body(request, self.info.model, self._can, room)

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """From a thread: it may ask the server."""
        if isinstance(prompt, ChatPrompt):
            text, special = chat_text(prompt, self)
        elif isinstance(prompt, str):
            text, special = prompt, _BEGINNING.match(prompt) is None
        else:
            return list(prompt)
        return self.encode([text], add_special_tokens=special)[0]

    def _room(self, tokens: int) -> int:
        """Tokens that are left for the answer."""
        limit = self.info.max_model_len
        if tokens >= limit:
            raise RequestRejected(
                f"The prompt has {tokens} tokens; the context holds {limit}, the answer included.",
                hint="Shorten the prompt.",
            )
        return limit - tokens

    def _its_tokens(self) -> Tokens:
        if self._tokens is None:
            self._refuse("tokens")
        return self._tokens

    def _refuse(self, feature: Feature) -> NoReturn:
        raise RequestRejected(self.info.cannot[feature], hint="Use another engine for that.")

    def _lose(self, error: EngineDied) -> EngineDied:
        if self._gone is None and not self._closed:
            self._gone = error
            _lost.add((self._server.base_url, self.spec.model))
        return error

    @contextlib.contextmanager
    def _counted(self) -> Any:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _count(self, completion: Completion) -> None:
        self._prompt_tokens += completion.prompt_tokens
        if completion.cached_tokens is not None:
            self._queried += completion.prompt_tokens
            self._cached += completion.cached_tokens


def _wanted(request: Request) -> int | None:
    if request.top_logprobs is not None:
        return request.top_logprobs
    return None if request.params.get("logprobs") is None else 0
