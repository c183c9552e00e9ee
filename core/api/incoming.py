"""What our own routes read of a request, and how what they raise is answered."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.api.openai_errors import RETRY_LATER, HttpError
from core.errors import EngineDied, EngineLoadError, EngineNotReady, EngineUnavailable, WorkbenchError

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

_GONE = (EngineNotReady, EngineDied, EngineLoadError, EngineUnavailable)
_CLIENT_GONE = 499  # nobody reads it; as nginx logs it
_log = logging.getLogger(__name__)


def as_http_error(error: Exception) -> HttpError:
    """What the client is told of any error; of one that is not ours, only that it happened."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, _GONE):
        return HttpError(503, str(error), code="engine_not_ready", headers=RETRY_LATER)
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


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list: at most `limit` entries behind the one whose id is `after`, newest first."""

    after: str | None
    limit: int
    oldest_first: bool = False

    def of(
        self, query: sa.Select[Any], at: sa.Column[Any], name: sa.Column[Any], place: tuple[Any, str] | None
    ) -> sa.Select[Any]:
        """`query` in order of `at` and then `name`, from behind `place`, with one row more than `limit`."""
        if place is not None:
            since, beside = place
            same = sa.and_(at == since, name > beside if self.oldest_first else name < beside)
            query = query.where(sa.or_(at > since if self.oldest_first else at < since, same))
        order = (at, name) if self.oldest_first else (at.desc(), name.desc())
        return query.order_by(*order).limit(self.limit + 1)

    def body(self, entries: list[dict[str, Any]], more: bool) -> dict[str, Any]:
        """The entries as OpenAI's lists are."""
        return {
            "object": "list",
            "data": entries,
            "first_id": entries[0]["id"] if entries else None,
            "last_id": entries[-1]["id"] if entries else None,
            "has_more": more,
        }


def read_page(request: Request, *, default: int, most: int) -> Page:
    """What the query asks for with after, limit and order. Raises HttpError."""
    asked = request.query_params
    limit, order = asked.get("limit", str(default)), asked.get("order", "desc")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= most:
        raise HttpError(400, f"limit is a number from 1 to {most:,}.", param="limit")
    if order not in ("asc", "desc"):
        raise HttpError(400, "order is asc or desc.", param="order")
    return Page(asked.get("after"), int(limit), order == "asc")
