"""The API as one ASGI app that outlives engines: our own routes, and vLLM's server on the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match

from core.api import live
from core.api.gate import Receive, Scope, Send
from core.api.incoming import as_http_error
from core.api.models import ModelNames
from core.api.openai_errors import RETRY_LATER, HttpError
from core.engines.base import Engine
from core.errors import EngineError, EngineNotReady, WorkbenchError
from core.runtime import Runtime

if TYPE_CHECKING:
    from core.api.vllm_app import VllmApp

# what is passed on to vLLM's server; it has more, such as routes that scale the engine or load adapters
_VLLM = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
     "/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/score", "/v1/score",
     "/rerank", "/v1/rerank", "/v2/rerank", "/v1/audio/transcriptions", "/v1/audio/translations",
     "/tokenize", "/detokenize", "/version", "/metrics", "/metrics/", "/ping", "/load"}
)  # fmt: skip
# answers to one request; alternatives to a token, of which the engine would give the whole vocabulary
_MOST = {"n": 128, "best_of": 128, "logprobs": 256, "top_logprobs": 256, "prompt_logprobs": 256}


class ApiApp:
    """Behind the gate. Belongs to the runtime's loop."""

    def __init__(self, runtime: Runtime, names: ModelNames, routes: Iterable[BaseRoute]) -> None:
        self._runtime = runtime
        self._names = names
        self._routes = tuple(routes)
        self._vllm: VllmApp | None = None
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except WorkbenchError as error:
            raise as_http_error(error) from error

    async def follow(self) -> None:
        """Have vLLM's server ready for the engine there is, and forget that of one that is gone."""
        try:
            engine = self._runtime.engine
        except EngineNotReady:
            engine = None
        if self._vllm is not None and self._vllm.engine is not engine:
            self._vllm = None  # it holds the tokenizer of an engine that is gone
        if engine is not None and _is_vllm(engine):
            await self._ready(engine)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/health":
            response = await self._health()
            await response(scope, receive, send)
            return
        for route in self._routes:
            match, child_scope = route.matches(scope)
            if match is Match.FULL:
                await route.handle({**scope, **child_scope}, receive, send)
                return
        if any(route.matches(scope)[0] is Match.PARTIAL for route in self._routes):
            raise HttpError(405, f"{path} does not take {scope['method']}.", code="method_not_allowed")
        if path not in _VLLM and not path.startswith("/v1/responses/"):
            raise HttpError(404, f"There is nothing at {path[:100]}.", code="not_found")
        await self._pass_on(scope, receive, send)

    async def _health(self) -> JSONResponse:
        try:
            engine = self._runtime.engine
            await engine.check()
        except EngineError:
            phase = self._runtime.status().phase
            # in the moment in which it died nobody else knows it yet
            return JSONResponse({"status": "dead" if phase == "ready" else phase}, 503, RETRY_LATER)
        if _is_vllm(engine) and (self._vllm is None or self._vllm.engine is not engine):
            # some seconds, for which the first requests would wait
            return JSONResponse({"status": "starting"}, 503, RETRY_LATER)
        return JSONResponse({"status": "ok"})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine = self._runtime.engine
        if not _is_vllm(engine):
            raise HttpError(
                501,
                f"{scope['path']} needs the vLLM engine; {engine.spec.engine} is loaded. POST /generate "
                "works with any engine.",
                type="not_implemented_error",
                code="engine_without_api",
            )
        vllm = await self._ready(engine)
        if scope["method"] == "POST" and _is_json(scope):
            receive = await self._resolved(vllm, scope, receive)
        await vllm.app(scope, receive, send)

    async def _ready(self, engine: Any) -> VllmApp:
        if self._vllm is not None and self._vllm.engine is engine:
            return self._vllm
        from core.api import vllm_app

        async with self._making:
            if self._vllm is None or self._vllm.engine is not engine:
                self._vllm = None
                self._vllm = await vllm_app.make(engine, self._runtime.slots)
            return self._vllm

    async def _resolved(self, vllm: VllmApp, scope: Scope, receive: Receive) -> Receive:
        """A `receive` whose body names a model or adapter that vLLM knows, a preset filled in."""
        message = await receive()
        raw = message.get("body", b"")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            return _first(message, receive)  # vLLM says what is wrong with it
        if isinstance(body, Mapping):
            _check_amounts(body)
            if not vllm.knows_tools:
                _check_tools(body)
            asked = await self._names.resolve_body(scope["path"], body)
            call = live.current()
            call.model = asked.get("model") or vllm.engine.info.model
            if call.model != vllm.engine.info.model:
                named = await asyncio.to_thread(self._names.find, call.model)
                if named.adapter is not None:
                    vllm.know(named.adapter)
            if asked is not body:
                raw = json.dumps(asked).encode()
                _set_length(scope, len(raw))
        return _first({**message, "body": raw}, receive)


def _check_amounts(body: Mapping[str, Any]) -> None:
    """Refuse what one request would take from all others, while its status can still be told."""
    for name, most in _MOST.items():
        value = body.get(name)
        if isinstance(value, int) and not 0 <= value <= most:
            raise HttpError(400, f"{name} is {value}; this server gives {most} at most.", param=name)


def _check_tools(body: Mapping[str, Any]) -> None:
    """For a model that would never hear of them."""
    if body.get("tools") and body.get("tool_choice") in (None, "auto"):
        raise HttpError(
            400,
            "This model's chat template knows no tools, so it can't choose one. Name one in tool_choice.",
            param="tool_choice",
        )


def _is_vllm(engine: Engine) -> bool:
    return engine.spec.engine == "vllm"


def _is_json(scope: Scope) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


def _set_length(scope: Scope, length: int) -> None:
    kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    scope["headers"] = [*kept, (b"content-length", str(length).encode())]


def _first(message: Any, receive: Receive) -> Receive:
    """A `receive` that gives `message`, and then what comes after it."""
    messages = [message]

    async def receive_next() -> Any:
        return messages.pop() if messages else await receive()

    return receive_next
