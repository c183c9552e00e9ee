"""vLLM's AsyncLLM as an Engine. Only this and the `vllm_` modules beside it import vllm (0.26 to 0.33).

`load` blocks and runs on a thread of its own; the engine it returns belongs to
the runtime's loop. vLLM's core and workers are processes of their own, and all
they print goes to the engine's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.engines import vllm_beams, vllm_scoring
from core.engines.base import Report
from core.engines.chat_prompts import chat_text
from core.engines.children import environment, main_replaced
from core.engines.engine_log import EngineLog, cause_in
from core.engines.guard import Guard
from core.engines.tokenizer import Tokenizer, end_ids
from core.engines.vllm_distribution import Question
from core.engines.vllm_info import describe, weights_bytes
from core.engines.vllm_lora import VllmAdapters
from core.engines.vllm_models import locate, read_facts
from core.engines.vllm_params import (
    MOST_SCORED_TOKENS,
    canonical,
    completion,
    finish_reason,
    reason_of,
    sampling_params,
    scoring_params,
    token_logprobs,
)
from core.engines.vllm_settings import choose
from core.engines.vllm_start import (
    check_reasoning_parser,
    child_environment,
    error_types,
    explain,
    find_device,
    import_vllm,
    lasting_environment,
    start,
    structured_at_once,
)
from core.engines.vllm_stats import Counters, stat_logger
from core.engines.vllm_structures import Structures
from core.engines.vllm_turns import Turns
from core.errors import EngineDied, RequestRejected
from core.settings import Settings
from core.types import (
    ChatPrompt,
    Completion,
    Delta,
    EngineInfo,
    EngineSpec,
    EngineStats,
    Message,
    Priority,
    Request,
    Timing,
    TokenLogprob,
    TokenPiece,
)

if TYPE_CHECKING:
    import numpy as np

_SWITCH_INTERVAL_S = 0.0005
_SHUTDOWN_S = 10.0
_LONG_TEXT = 20_000


def load(
    spec: EngineSpec,
    settings: Settings,
    *,
    report: Report,
    log: EngineLog,
    guard: Guard,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> VllmEngine:
    """Start vLLM on a model and answer one request with it. Blocks for the whole load.

    `run` runs a coroutine on the loop that the engine will live on. Raises
    EngineLoadError (with the engine's log), ModelError.
    """
    began = time.monotonic()
    os.environ.update(log.begin() | lasting_environment())
    model = locate(spec, settings, report)
    report("Importing vLLM")
    import_vllm()
    facts = read_facts(model, spec)
    tokenizer = Tokenizer(model.name, model.folder, trust_remote_code=spec.trust_remote_code)
    if spec.reasoning_parser is not None:
        check_reasoning_parser(spec.reasoning_parser, tokenizer.inner)
    device = find_device(spec)
    choice = choose(spec, facts, device)
    counters = Counters()
    report("Starting the engine process")
    try:
        eager = bool(choice.arguments["enforce_eager"])
        with environment(child_environment(device, eager=eager)), main_replaced():
            engine = start(spec, model, choice, stat_logger(counters))
    except Exception as error:
        log.poll()
        raise explain(error, model, log.lines) from error
    log.attach()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    guard.adopt()
    loaded = VllmEngine(
        engine=engine,
        spec=spec,
        info=describe(engine, model, tokenizer, facts, device, choice, began, run(weights_bytes(engine))),
        tokenizer=tokenizer,
        counters=counters,
        guard=guard,
        log=log,
        adapters=VllmAdapters(engine.vllm_config, device.kind, model),
    )
    try:
        report("Warming up")
        run(loaded.warm_up())
    except BaseException:
        run(loaded.close())
        raise
    return loaded


class VllmEngine:
    """One AsyncLLM and its processes."""

    def __init__(
        self,
        *,
        engine: Any,
        spec: EngineSpec,
        info: EngineInfo,
        tokenizer: Tokenizer,
        counters: Counters,
        guard: Guard,
        log: EngineLog,
        adapters: VllmAdapters,
    ) -> None:
        self.spec = spec
        self.info = info
        self._engine = engine
        self._tokenizer = tokenizer
        self._counters = counters
        self._guard = guard
        self._log = log
        self._live = 0
        self._end_ids = end_ids(tokenizer, info.generation_config)
        self._numbers = itertools.count()
        self.structures = Structures(self._make_ready)
        self._turns = Turns()
        self._adapters = adapters

    @property
    def chat_template(self) -> str | None:
        return self._tokenizer.chat_template

    async def stream(self, request: Request) -> AsyncIterator[Delta | Completion]:
        sent = time.monotonic()
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        tokens, first, last, output = 0, None, None, None
        if request.params.get("n", 1) > 1:
            raise RequestRejected("Only one answer can be streamed.", hint="Leave n out.")
        async with contextlib.aclosing(self._answers(request, streaming=True)) as outputs:
            async for output in outputs:
                part = output.outputs[0]
                if part.text or part.token_ids:
                    last = time.monotonic()
                    first = first or last
                    tokens += len(part.token_ids)
                    texts.append(part.text)
                    entries = self._token_logprobs(part, request.top_logprobs)
                    logprobs += entries
                    yield Delta(part.text, len(part.token_ids), last, entries)
        yield completion(output, "".join(texts), tokens, Timing(sent, first, last), tuple(logprobs))

    async def complete(self, request: Request) -> Completion:
        sent = time.monotonic()
        output = None
        async with contextlib.aclosing(self._answers(request, streaming=False)) as outputs:
            async for output in outputs:  # noqa: B007  (there is one, when it is finished)
                pass
        last = time.monotonic()
        part = output.outputs[0]
        # a beam search has no metrics: its text comes all at once
        wait = output.metrics.first_token_latency if output.metrics else last - sent
        first = min(sent + wait, last) if wait else None
        logprobs = self._token_logprobs(part, request.top_logprobs)
        return completion(output, part.text, len(part.token_ids), Timing(sent, first, last), logprobs)

    def _token_logprobs(self, part: Any, wanted: int | None) -> tuple[TokenLogprob, ...]:
        return () if wanted is None else token_logprobs(part, wanted, self._tokenizer.texts)

    async def score(self, request: Request, choices: Sequence[str]) -> list[float]:
        if "score" in self.info.cannot:
            raise RequestRejected(self.info.cannot["score"], hint="Load it again without.")
        ids = await self._prompt_ids(request)
        answers = [tuple(tokens) for tokens in self._tokenizer.encode(choices)]
        vllm_scoring.check(answers, len(ids), self.info.max_model_len)
        ask = functools.partial(self._log_probabilities, request, ids)
        return await vllm_scoring.score(answers, self._end_ids, ask)

    async def _log_probabilities(
        self, request: Request, ids: list[int], node: vllm_scoring.Tokens, wanted: Sequence[int]
    ) -> dict[int, float]:
        """Those of the tokens `wanted`, each as the next one after the prompt `ids` and `node`."""
        found: dict[int, float] = {}
        for begin in range(0, len(wanted), MOST_SCORED_TOKENS):
            tokens = wanted[begin : begin + MOST_SCORED_TOKENS]
            for params in scoring_params(tokens, forced=self._turns.alternatives > 0):
                name = f"{request.id}-score-{next(self._numbers)}"
                async for output in self._outputs(name, [*ids, *node], params, request):
                    part = output.outputs[0]
                    finish_reason(part)
                    found |= {token: entry.logprob for token, entry in part.logprobs[0].items()}
        return found

    async def next_logprobs(self, request: Request) -> np.ndarray:
        question = Question(self.client().vllm_config, await self._prompt_ids(request))
        name = f"{request.id}-next-{next(self._numbers)}"
        outputs = self._outputs(name, question.token_ids, question.params, request)
        (output,) = [each async for each in outputs]
        finish_reason(output.outputs[0])
        return question.read(output)

    async def _answers(self, request: Request, *, streaming: bool) -> AsyncIterator[Any]:
        """vLLM's RequestOutputs for our request, the last one finished."""
        ids = await self._prompt_ids(request)
        structure = request.params.get("structured_outputs")
        if structure is not None:
            await self.structures.ensure(structure)
        if request.params.get("beam_width") is not None:
            outputs = self._search(request, ids)
        else:
            with self._errors():
                params = sampling_params(canonical(request.params), streaming, request.top_logprobs)
            outputs = self._outputs(request.id, ids, params, request)
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                yield output

    async def _search(self, request: Request, ids: list[int]) -> AsyncIterator[Any]:
        """The one RequestOutput of a beam search, whose steps are requests of one token each."""
        if "beam_search" in self.info.cannot:
            raise RequestRejected(self.info.cannot["beam_search"], hint="Leave beam_width empty.")

        def generate(prompt: Any, params: Any, name: str) -> AsyncIterator[Any]:
            return self._outputs(name, prompt["prompt_token_ids"], params, request)

        room = self.info.max_model_len - len(ids)
        yield await vllm_beams.search(self.client(), generate, request, ids, room)

    def client(self) -> Any:
        """vLLM's AsyncLLM. Raises EngineDied once it was unloaded."""
        if self._engine is None:
            raise EngineDied("The engine was unloaded.", hint="Load it again.")
        return self._engine

    @contextlib.asynccontextmanager
    async def entering(self, request: Request, params: Any) -> AsyncIterator[Any]:
        """Wait for a turn in the engine and hold it; gives vLLM's LoRARequest or None. Raises as `stream`."""
        async with self._turns.of(params), self._adapters.held(request, self.client) as adapter:
            self._live += 1
            try:
                yield adapter
            finally:
                self._live -= 1

    async def _outputs(
        self, name: str, ids: Sequence[int], params: Any, request: Request
    ) -> AsyncIterator[Any]:
        """vLLM's outputs for a part of our request, with its priority and adapter."""
        async with self.entering(request, params) as adapter:
            with self._errors():
                more = {"lora_request": adapter, "priority": int(request.priority)}
                more |= structured_at_once(self.spec)
                generated = self.client().generate({"prompt_token_ids": ids}, params, name, **more)
                async with contextlib.aclosing(generated) as outputs:
                    async for output in outputs:
                        yield output

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """vLLM's exceptions end here."""
        errors = error_types()
        try:
            yield
        except errors.dead as error:
            raise self._died() from error
        except errors.generate as error:
            if self._engine is None or self._engine.errored:
                raise self._died() from error
            raise RequestRejected(f"The engine failed on this request: {error.__cause__ or error}") from error
        except errors.rejected as error:
            raise RequestRejected(reason_of(error), hint="Change the prompt or parameters.") from error

    async def _make_ready(self, structure: Mapping[str, Any]) -> None:
        """Have vLLM compile the structure, by a request for one token."""
        params = {"max_tokens": 1, "temperature": 0, "structured_outputs": structure}
        with self._errors():
            asked = sampling_params(canonical(params), False)
        ids = self._tokenizer.encode_prompt("Hello")
        request = Request(id=f"structure-{next(self._numbers)}", prompt=ids, priority=Priority.COMPARE)
        async for output in self._outputs(request.id, ids, asked, request):
            finish_reason(output.outputs[0])

    async def _prompt_ids(self, request: Request) -> list[int]:
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt):
            ids = await asyncio.to_thread(self._chat_ids, prompt)
        elif not isinstance(prompt, str):
            ids = list(prompt)
        elif len(prompt) > _LONG_TEXT:
            ids = await asyncio.to_thread(self._tokenizer.encode_prompt, prompt)
        else:
            ids = self._tokenizer.encode_prompt(prompt)
        if not ids:
            raise RequestRejected("The prompt is empty.", hint="Write something.")
        limit = self.info.max_model_len
        if len(ids) >= limit:
            raise RequestRejected(
                f"The prompt has {len(ids)} tokens; the context holds {limit}, the answer included.",
                hint="Shorten the prompt.",
            )
        return ids

    def _chat_ids(self, prompt: ChatPrompt) -> list[int]:
        text, add_special_tokens = chat_text(prompt, self)
        return self.encode([text], add_special_tokens=add_special_tokens)[0]

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
        # vLLM reports on each step, and makes none after the last request was aborted.
        return self._counters.read(idle=self._live == 0)

    async def reset_prefix_cache(self) -> bool:
        with self._errors():  # a call that is pending when the engine dies never returns
            return await asyncio.wait_for(self.client().reset_prefix_cache(), _SHUTDOWN_S)

    async def check(self) -> None:
        if self._engine is not None and self._engine.errored:
            raise self._died()

    def _died(self) -> EngineDied:
        self._log.poll()
        cause = cause_in(self._log.lines)
        return EngineDied(f"The engine's process ended{f': {cause}' if cause else '.'}")

    async def warm_up(self) -> None:
        """One short answer, so that the first user doesn't wait for what vLLM does only once."""
        ids = self._tokenizer.encode_prompt("Hello, how are you today?")
        params = {"max_tokens": 4, "ignore_eos": True}
        # not as a chat: after one, steps stay short for a while
        await self.complete(Request(id="warm-up", prompt=ids, params=params, priority=Priority.BATCH))

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if not engine.errored:
            pending = list(engine.output_processor.request_states)
            if pending:
                await engine.abort(pending, internal=True)
        if engine.output_handler is not None:
            engine.output_handler.cancel()
        await asyncio.to_thread(engine.shutdown, timeout=_SHUTDOWN_S)
        engine.shutdown = lambda timeout=None: None  # its __del__ would do it all again
        await asyncio.to_thread(self._guard.end_all, 2.0)
