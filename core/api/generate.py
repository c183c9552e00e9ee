"""POST /generate: one prompt and its parameters in, one answer out. For curl, and for any engine.

    {"prompt": "...", "temperature": 0}
    -> {"response": "...", "finish_reason": "stop", "usage": {...}, "time": 0.41, "model": "..."}

`messages` may stand in place of `prompt`, `system` beside it; `raw`: the prompt is continued as it is,
without the model's chat form; `stream`: server-sent events. The rest are parameters of `core.sampling`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from core import sampling
from core.api import live
from core.api.incoming import as_http_error, in_openai_form, read_object, unless_gone
from core.api.live import Call
from core.api.models import ModelNames
from core.api.openai_errors import HttpError
from core.asks import encodable, read_messages
from core.engines.base import Engine
from core.errors import ParameterError, TemplateError, WorkbenchError
from core.named_values import did_you_mean
from core.runtime import Runtime
from core.slots import Slots
from core.types import ChatPrompt, Completion, Delta, Message, Prompt
from core.types import Request as EngineRequest

PATH = "/generate"
_OWN_FIELDS = ("prompt", "messages", "system", "model", "raw", "stream")


class Generate:
    """The endpoint."""

    def __init__(self, runtime: Runtime, names: ModelNames) -> None:
        self._runtime = runtime
        self._names = names

    def routes(self) -> list[Route]:
        return [Route(PATH, in_openai_form(self._post), methods=["POST"])]

    async def _post(self, request: Request) -> Response:
        body = await read_object(request)
        engine, call = self._runtime.engine, live.current()
        _check_names(body)
        # presets are read from the disk
        asked = await asyncio.to_thread(self._read, body, engine, call)
        if _flag(body, "stream"):
            return await _streamed(request, engine, self._runtime.slots, asked, call)
        completion = await unless_gone(request, _complete(engine, self._runtime.slots, asked, call))
        return JSONResponse(_answer(completion, call.model))

    def _read(self, body: Mapping[str, Any], engine: Engine, call: Call) -> EngineRequest:
        """Raises HttpError that names the field."""
        named = self._names.find(_text_or_none(body, "model"))
        call.model = named.model
        own = {name: value for name, value in body.items() if name not in _OWN_FIELDS and value is not None}
        if isinstance(own.get("stop"), str):
            own["stop"] = [own["stop"]]  # one text, as in OpenAI's API: the table would look for JSON in it
        try:
            params = sampling.validate(
                {**sampling.defaults(engine.info.generation_config), **named.params, **own}
            )
        except ParameterError as error:
            raise HttpError(400, str(error), param=_blamed(error, own)) from error
        if _flag(body, "stream") and params.get("n", 1) > 1:
            raise HttpError(400, "Only one answer can be streamed. Leave n or stream out.", param="n")
        return EngineRequest(
            id=call.request_id,
            prompt=_prompt(body),
            params=params,
            priority=call.priority,
            adapter=named.adapter,
        )


async def _complete(engine: Engine, slots: Slots, asked: EngineRequest, call: Call) -> Completion:
    async def complete() -> Completion:
        async with slots.held(call.priority):
            return await engine.complete(asked)

    working = asyncio.ensure_future(complete())
    try:
        with call.abortable(working.cancel):
            await asyncio.wait({working})
        if working.cancelled():
            _refuse_aborted()
        completion = working.result()
    finally:
        working.cancel()
    call.first_token_s = completion.timing.first_token_s
    _count(call, completion)
    call.wrote(completion.output_tokens)
    return completion


async def _streamed(
    request: Request, engine: Engine, slots: Slots, asked: EngineRequest, call: Call
) -> Response:
    """Raises what the engine says before the first token: so long, the status can still tell."""
    events = _events(engine, slots, asked, call)
    try:
        first = await unless_gone(request, anext(events))
    except BaseException:
        await events.aclose()
        raise

    async def all_events() -> AsyncIterator[str]:
        async with contextlib.aclosing(events):
            yield first
            try:
                async for event in events:
                    yield event
            except (HttpError, WorkbenchError) as error:
                yield f"data: {as_http_error(error).response.body.decode()}\n\n"
        yield "data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache"}
    return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)


async def _events(engine: Engine, slots: Slots, asked: EngineRequest, call: Call) -> AsyncIterator[str]:
    """The answer piece by piece, then its figures. Closing it aborts the request."""
    items: asyncio.Queue[Delta | Completion | None] = asyncio.Queue()

    async def generate() -> None:
        async with slots.held(call.priority), contextlib.aclosing(engine.stream(asked)) as stream:
            async for item in stream:
                items.put_nowait(item)

    generating = asyncio.ensure_future(generate())  # a task of its own, for `abort` to cancel
    generating.add_done_callback(lambda _task: items.put_nowait(None))
    try:
        with call.abortable(generating.cancel):
            while (item := await items.get()) is not None:
                _count(call, item)
                if isinstance(item, Completion):
                    yield _event({**_answer(item, call.model), "response": ""})
                elif item.text:
                    yield _event({"response": item.text})
        if generating.cancelled():
            _refuse_aborted()
        generating.result()
    finally:
        generating.cancel()
        await asyncio.wait({generating})


def _count(call: Call, item: Delta | Completion) -> None:
    if isinstance(item, Completion):
        call.read(item.prompt_tokens)
    else:
        call.wrote(item.tokens)


def _refuse_aborted() -> NoReturn:
    raise HttpError(400, "The request was ended by whoever runs this server.", code="aborted")


def _check_names(body: Mapping[str, Any]) -> None:
    known = (*_OWN_FIELDS, *sampling.BY_NAME)
    for name in body:
        if name not in known:
            hint = did_you_mean(name, known, f"Known: {', '.join(known)}.")
            raise HttpError(400, f"There is no parameter {name!r}. {hint}", param=name)


def _blamed(error: ParameterError, given: Mapping[str, Any]) -> str | None:
    """The parameter that an error is about: its message begins with the name."""
    return next((name for name in given if error.message.startswith(f"{name}=")), None)


def _text_or_none(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise HttpError(400, f"{name} is not a text.", param=name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise HttpError(400, f"{name} is not true or false.", param=name)
    return bool(value)


def _prompt(body: Mapping[str, Any]) -> Prompt:
    """The text to continue, or the conversation that the engine puts into the model's form."""
    prompt, messages = _text_or_none(body, "prompt"), body.get("messages")
    system, raw = _text_or_none(body, "system"), _flag(body, "raw")
    if (prompt is None) == (messages is None):
        raise HttpError(400, 'Give either prompt or messages, {"prompt": "..."} say.', param="prompt")
    if raw and (system or prompt is None):
        raise HttpError(400, "raw continues a prompt as it is: without messages and system.", param="raw")
    opening = (Message("system", encodable(system)),) if system else ()
    if prompt is None:
        try:
            return ChatPrompt((*opening, *read_messages(messages, "messages")))
        except TemplateError as error:
            raise HttpError(400, str(error), param="messages") from error
    if not prompt.strip():
        raise HttpError(400, "The prompt is empty. Write something.", param="prompt")
    text = encodable(prompt)
    return text if raw else ChatPrompt((*opening, Message("user", text)))


def _answer(completion: Completion, model: str) -> dict[str, Any]:
    """`time`: seconds from sending the request to its last token; `ttft`: to its first."""
    prompt_tokens, output_tokens = completion.prompt_tokens, completion.output_tokens
    answer: dict[str, Any] = {
        "response": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "cached_tokens": completion.cached_tokens,
        },
        "time": completion.timing.e2el_s,
        "ttft": completion.timing.ttft_s,
        "model": model,
    }
    if completion.cumulative_logprob is not None:
        answer["logprob"] = completion.cumulative_logprob
    if completion.samples:
        answer["samples"] = [
            {
                "response": sample.text,
                "finish_reason": sample.finish_reason,
                "completion_tokens": sample.output_tokens,
                "logprob": sample.cumulative_logprob,
            }
            for sample in completion.samples
        ]
    return answer


def _event(values: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
