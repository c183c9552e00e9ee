"""/v1/batches as OpenAI has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.api import live
from core.api.batch_records import WINDOW, Batch
from core.api.batches import Batches
from core.api.files import Files
from core.api.incoming import in_openai_form, read_object, read_page, text_of
from core.api.openai_errors import HttpError

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")

_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata")
_PAGE, _MOST_PAGE = 20, 100
_MOST_OPEN = 200
_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512


class BatchRoutes:
    """/v1/batches. Everybody sees the batches of the own key only."""

    def __init__(self, batches: Batches, files: Files) -> None:
        self._batches = batches
        self._files = files

    def routes(self) -> list[Route]:
        one = "/v1/batches/{batch_id}"
        return [
            Route("/v1/batches", in_openai_form(self._create), methods=["POST"]),
            Route("/v1/batches", in_openai_form(self._list), methods=["GET"]),
            Route(one, in_openai_form(self._retrieve), methods=["GET"]),
            Route(f"{one}/cancel", in_openai_form(self._cancel), methods=["POST"]),
        ]

    async def _create(self, request: Request) -> Response:
        body = await read_object(request)
        batch = await asyncio.to_thread(self._add, body, live.current().key_id)
        self._batches.take(batch.batch_id)
        return JSONResponse(batch.as_json())

    async def _list(self, request: Request) -> Response:
        page = read_page(request, default=_PAGE, most=_MOST_PAGE)
        key_id = live.current().key_id

        def listed() -> dict[str, Any]:
            found, more = self._batches.records.list(key_id, page)
            return page.body([batch.as_json(self._batches.counts(batch)) for batch in found], more)

        return JSONResponse(await asyncio.to_thread(listed))

    async def _retrieve(self, request: Request) -> Response:
        batch_id, key_id = request.path_params["batch_id"], live.current().key_id

        def found() -> dict[str, Any]:
            batch = self._batches.records.own(batch_id, key_id)
            return batch.as_json(self._batches.counts(batch))

        return JSONResponse(await asyncio.to_thread(found))

    async def _cancel(self, request: Request) -> Response:
        batch_id, key_id = request.path_params["batch_id"], live.current().key_id

        def cancelled() -> dict[str, Any]:
            records = self._batches.records
            records.own(batch_id, key_id)
            batch = records.change(batch_id, only_in=("validating", "in_progress"), status="cancelling")
            if batch.status != "cancelling":
                message = f"The batch is {batch.status}: it can't be cancelled any more."
                raise HttpError(400, message, code="batch_not_cancellable")  # clients try 409 again
            return batch.as_json(self._batches.counts(batch))

        answer = await asyncio.to_thread(cancelled)
        self._batches.take(batch_id)
        return JSONResponse(answer)

    def _add(self, body: Mapping[str, Any], key_id: str | None) -> Batch:
        surplus = next((name for name in body if name not in _FIELDS), None)
        if surplus is not None:
            raise HttpError(400, f"{surplus[:40]} is not supported. Leave it out.", param=surplus[:40])
        endpoint, window = text_of(body, "endpoint"), text_of(body, "completion_window")
        if endpoint not in ENDPOINTS:
            raise HttpError(400, f"The endpoint of a batch is {' or '.join(ENDPOINTS)}.", param="endpoint")
        if window != WINDOW:
            raise HttpError(400, f'completion_window is "{WINDOW}".', param="completion_window")
        file = self._files.find(text_of(body, "input_file_id"), key_id)
        if file.purpose != "batch":
            raise HttpError(400, "The file's purpose is not batch.", param="input_file_id")
        if len(self._batches.records.open()) >= _MOST_OPEN:
            message = f"{_MOST_OPEN} batches are open. Ask again when one has ended."
            raise HttpError(429, message, code="too_many_batches", headers={"Retry-After": "60"})
        return self._batches.records.add(
            key_id=key_id,
            endpoint=endpoint,
            input_file_id=file.file_id,
            filename=file.filename,
            completion_window=window,
            metadata=_metadata(body.get("metadata")),
        )


def _metadata(given: Any) -> dict[str, str] | None:
    """Raises HttpError for what OpenAI doesn't take either."""
    if given is None:
        return None
    pairs = given.items() if isinstance(given, Mapping) else ()
    fits = isinstance(given, Mapping) and len(given) <= _MOST_PAIRS
    if not fits or any(
        not isinstance(value, str) or len(name) > _LONGEST_KEY or len(value) > _LONGEST_VALUE
        for name, value in pairs
    ):
        most = f"{_MOST_PAIRS} texts of {_LONGEST_VALUE} characters, under names of {_LONGEST_KEY}"
        raise HttpError(400, f"metadata has at most {most}.", param="metadata")
    return dict(given)
