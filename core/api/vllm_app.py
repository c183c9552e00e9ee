"""vLLM's own OpenAI server as an ASGI app on a loaded engine (vLLM 0.26 to 0.33)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from starlette.exceptions import HTTPException

from core import memory
from core.api import live
from core.api.live import Call
from core.api.openai_errors import RETRY_LATER, HttpError
from core.engines.vllm import VllmEngine
from core.errors import EngineDied, RequestRejected
from core.slots import Slots
from core.types import LoraAdapter, Request

# what a chat template says of tools -> vLLM's parser for how such a model calls them
_TOOL_PARSERS = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call|>", "granite"),
)
# for a tool that the request names, which any model calls, as structured output: not every parser of vLLM's
# leaves the arguments' schema to that, and it refuses to do so without a parser
_ANY_PARSER = "granite"
_log = logging.getLogger(__name__)


class VllmApp:
    """`app` answers for `engine` until that is closed. `knows_tools`: the model can choose a tool itself."""

    def __init__(self, engine: VllmEngine, app: Any, *, knows_tools: bool) -> None:
        self.engine = engine
        self.app = app
        self.knows_tools = knows_tools

    def know(self, adapter: LoraAdapter) -> None:
        """Let requests name this adapter as their model."""
        from vllm.lora.request import LoRARequest

        known = self.app.state.openai_serving_models.lora_requests
        # the folder tells the proxy what to load; vLLM's own request is made there, once it was checked
        known[adapter.name] = LoRARequest(adapter.name, adapter.number, adapter.folder)


async def make(engine: VllmEngine, slots: Slots) -> VllmApp:
    """Build it, in a thread: half a second of imports and tokenizers, in which no chat would go on."""
    proxy = EngineProxy(engine, slots)
    tasks = await proxy.get_supported_tasks()
    app = await asyncio.to_thread(_build, engine, proxy, tasks)
    await asyncio.to_thread(memory.settle)  # as after a load: the web frameworks stay
    return app


def _build(engine: VllmEngine, proxy: EngineProxy, tasks: Any) -> VllmApp:
    parser = _tool_parser(engine.chat_template)
    if parser is not None:
        try:
            return VllmApp(engine, _assembled(engine, proxy, tasks, parser), knows_tools=True)
        except (
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:  # its tokenizer lacks what the parser looks for
            _log.warning("%s can't choose tools by itself: %s", engine.info.model, error)
    return VllmApp(engine, _assembled(engine, proxy, tasks, _ANY_PARSER), knows_tools=False)


def _assembled(engine: VllmEngine, proxy: EngineProxy, tasks: Any, tool_parser: str) -> Any:
    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ImportError:  # 0.26
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
        from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.exceptions import EngineDeadError

    asked = ["--model", str(proxy.model_config.model), "--served-model-name", engine.info.model]
    asked += ["--enable-prompt-tokens-details", "--disable-fastapi-docs"]
    asked += ["--enable-auto-tool-choice", "--tool-call-parser", tool_parser]
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(asked)
    # vLLM hands it on while it makes its own engine
    arguments.structured_outputs_config.reasoning_parser = engine.spec.reasoning_parser or ""
    arguments.allowed_origins = []  # no page of another site; the gate sees to that
    validate_parsed_serve_args(arguments)
    app = build_app(arguments, tasks, proxy.model_config)
    app.add_exception_handler(EngineDeadError, _on_death)
    app.add_exception_handler(HTTPException, _on_no_route)
    app.middleware_stack = None  # it was built before them
    asyncio.run(init_app_state(proxy, app.state, arguments, tasks))  # a coroutine that waits for nothing
    # vLLM's handlers end this "server" when the engine dies; ours stays, and gets a new engine
    app.state.server = SimpleNamespace(should_exit=False)
    return app


async def _on_death(_request: Any, _error: Exception) -> Any:
    message = "The engine ended under this request. Ask again in a moment."
    return HttpError(503, message, code="engine_died", headers=RETRY_LATER).response


async def _on_no_route(request: Any, error: HTTPException) -> Any:
    """What Starlette itself says of a path: vLLM mounts only the paths that the model is one for."""
    if error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}."
        return HttpError(405, message, code="method_not_allowed").response
    return HttpError(error.status_code, f"This model has no {request.url.path}.", code="not_found").response


def _tool_parser(template: str | None) -> str | None:
    """The parser for tool calls as the model's chat template writes them; None: it knows no tools."""
    if template is None or "tools" not in template:
        return None
    return next((parser for sign, parser in _TOOL_PARSERS if sign in template), None)


class EngineProxy:
    """What vLLM's server takes for its engine: the loaded one, where each request waits its turn.

    As in the workbench's own requests: priority, slots that leave some to chats, adapters loaded by
    calls of their own, structures tried once. All else is the engine's.
    """

    def __init__(self, engine: VllmEngine, slots: Slots) -> None:
        self._engine = engine
        self._slots = slots

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client(), name)

    def _client(self) -> Any:
        try:
            return self._engine.client()
        except EngineDied as error:
            raise _dead() from error

    @property
    def errored(self) -> bool:
        try:
            return self._engine.client().errored
        except EngineDied:
            return True

    @property
    def is_running(self) -> bool:
        return not self.errored

    @property
    def dead_error(self) -> BaseException:
        return _dead()

    async def generate(
        self,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        *,
        lora_request: Any = None,
        priority: int = 0,
        **more: Any,
    ) -> AsyncIterator[Any]:
        """As AsyncLLM's, but that `priority` is the key's, whatever the request says."""
        call = live.current()
        tokens = len(prompt.get("prompt_token_ids") or ()) if isinstance(prompt, dict) else 0
        async with contextlib.AsyncExitStack() as stack:
            adapter = await self._enter(stack, call, sampling_params, lora_request)
            client = self._client()
            count = _Count(call, sampling_params, client, request_id)
            if not (call.prompt_tokens and "-beam-" in request_id):  # each step of a beam search is a request
                call.read(tokens)
            stack.enter_context(count)
            stack.enter_context(call.abortable(lambda: _abort(client, request_id)))
            generated = client.generate(
                prompt, sampling_params, request_id, lora_request=adapter, priority=call.priority, **more
            )
            outputs = await stack.enter_async_context(contextlib.aclosing(generated))
            async for output in outputs:
                count.add(output)
                if output.finished and not call.is_aborted and self._ended(output):
                    call.failed = 503
                    raise _dead()
                yield output

    def _ended(self, output: Any) -> bool:
        """Whether the engine was unloaded under the request, which aborts it."""
        return self.errored and any(part.finish_reason == "abort" for part in output.outputs)

    async def encode(self, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        """As AsyncLLM's, for embeddings and scores."""
        call = live.current()
        named["priority"] = call.priority
        async with (
            self._slots.held(call.priority),
            contextlib.aclosing(self._client().encode(*arguments, **named)) as outputs,
        ):
            async for output in outputs:
                if output.finished:
                    call.read(len(output.prompt_token_ids))
                yield output

    async def _enter(self, stack: contextlib.AsyncExitStack, call: Call, params: Any, lora: Any) -> Any:
        """Wait for the request's turn; give vLLM's request for its adapter, or None."""
        adapter = None if lora is None else LoraAdapter(lora.lora_name, lora.lora_path, lora.lora_int_id)
        request = Request(id="", prompt=(), priority=call.priority, adapter=adapter)
        try:
            async with asyncio.timeout(None) as waiting:
                with call.abortable(lambda: waiting.reschedule(0)):
                    if params.structured_outputs is not None:
                        await self._engine.structures.ensure(_structure(params.structured_outputs))
                    await stack.enter_async_context(self._slots.held(call.priority))
                    return await stack.enter_async_context(self._engine.entering(request, params))
        except TimeoutError as error:
            raise ValueError("The request was ended by the workbench.") from error
        except RequestRejected as error:
            raise ValueError(str(error)) from error
        except EngineDied as error:
            raise _dead() from error


class _Count:
    """Counts the tokens of one request of vLLM's into its call; as a context, while it is answered."""

    def __init__(self, call: Call, params: Any, client: Any, request_id: str) -> None:
        self._call = call
        self._is_delta = params.output_kind.name == "DELTA"
        self._client = client
        self._request_id = request_id
        self._told = 0

    def __enter__(self) -> None:
        if not self._is_delta:
            self._call.unreported.append(self._so_far)

    def __exit__(self, *_error: object) -> None:
        if not self._is_delta:
            self._call.unreported.remove(self._so_far)

    def add(self, output: Any) -> None:
        tokens = 0
        for part in output.outputs:  # for each token of everybody: no generator for sum()
            tokens += len(part.token_ids)
        if self._is_delta:
            self._call.wrote(tokens)
        else:
            if output.metrics is not None and output.metrics.first_token_ts:
                # else the whole answer, which comes at once, would be its first token
                self._call.first_token_s = self._call.first_token_s or output.metrics.first_token_ts
            self._call.wrote(max(0, tokens - self._told))
            self._told = max(self._told, tokens)

    def _so_far(self) -> int:
        """Tokens that vLLM has, of an answer that it tells only at its end."""
        processor = self._client.output_processor
        states = map(processor.request_states.get, processor.external_req_ids.get(self._request_id, ()))
        written = sum(
            state.detokenizer.num_output_tokens() for state in states if state and state.detokenizer
        )
        return max(0, written - self._told)


def _structure(asked: Any) -> dict[str, Any]:
    """vLLM's StructuredOutputsParams as our parameter of that name."""
    kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    kind, value = next((kind, value) for kind in kinds if (value := getattr(asked, kind, None)) is not None)
    return {kind: json.loads(value) if kind == "json" and isinstance(value, str) else value}


def _abort(client: Any, request_id: str) -> None:
    task = asyncio.ensure_future(client.abort(request_id))
    _aborting.add(task)
    task.add_done_callback(_aborting.discard)


_aborting: set[asyncio.Task[None]] = set()


def _dead() -> Exception:
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError()
