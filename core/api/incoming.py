"""What our own routes read of a request, and how what they raise is answered."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.api.openai_errors import HttpError
from core.errors import EngineDied, EngineLoadError, EngineNotReady, EngineUnavailable, WorkbenchError

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

_GONE = (EngineNotReady, EngineDied, EngineLoadError, EngineUnavailable)
_RETRY_AFTER_S = 5
_CLIENT_GONE = 499  # nobody reads it; as nginx logs it
_log = logging.getLogger(__name__)


def as_http_error(error: Exception) -> HttpError:
    """What the client is told of any error; of one that is not ours, only that it happened."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, _GONE):
        headers = {"Retry-After": str(_RETRY_AFTER_S)}
        return HttpError(503, str(error), code="engine_not_ready", headers=headers)
    if isinstance(error, WorkbenchError):
        return HttpError(400, str(error))
    return HttpError(500, "An unexpected error; the server's log has it.")


def in_openai_form(handler: Handler) -> Handler:
    """The handler, with everything that it raises answered in OpenAI's form."""

    @functools.wraps(handler)
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        except Exception as error:
            if not isinstance(error, HttpError | WorkbenchError):
                _log.exception("%s %s", request.method, request.url.path)
            return as_http_error(error).response

    return answered


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body, which the gate has bounded. Raises HttpError."""
    body = await request.body()
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"The body is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise HttpError(400, 'The body is no JSON object. Write {"prompt": "..."}, say.')
    return found


def text_of(body: Mapping[str, Any], name: str) -> str:
    """A text field. Raises HttpError where it is something else, or missing."""
    value = body.get(name)
    if not isinstance(value, str):
        raise HttpError(400, f"{name} is {'missing' if value is None else 'not a text'}.", param=name)
    return value


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Call it when the body is read.

    Raises ClientDisconnect then.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
