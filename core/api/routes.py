"""The API's own routes: what vLLM's server doesn't have, on any engine.

GET  /v1/models, /v1/models/{name}
POST /generate
/v1/files, /v1/batches
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.api.batch_routes import BatchRoutes
from core.api.batches import Batches
from core.api.context import ApiContext
from core.api.files import FileRoutes, Files
from core.api.generate import Generate
from core.api.incoming import in_openai_form
from core.api.models import ModelNames


class OwnApi:
    """Our routes, and what they need for as long as the process serves.

    `names` also resolves the "model" of bodies that go on to vLLM (`names.resolve_body`). `start` and
    `close` go with the server: open batches go on, or wait for the next start.
    """

    def __init__(self, context: ApiContext) -> None:
        self.names = ModelNames(context.runtime, context.store)
        files = Files(context.store, context.settings)
        self._batches = Batches(context, files, self.names)
        self._rooms = (
            Generate(context.runtime, self.names),
            FileRoutes(files),
            BatchRoutes(self._batches, files),
        )

    def start(self) -> None:
        """Go on with the batches that nobody else works on. Returns at once."""
        self._batches.start()

    def close(self) -> None:
        """Leave them to the next start. Before the jobs are closed. Not on the loop; safe to call twice."""
        self._batches.close()

    def tokens_today(self, key_id: str) -> int:
        """Tokens that batches of the key used today, which are not among its requests'. Quick, as a rule."""
        return self._batches.tokens_today(key_id)

    def routes(self) -> list[Route]:
        """For the app behind the gate: each answers for `core.api.live.current()`."""
        return [
            Route("/v1/models", in_openai_form(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", in_openai_form(self._model), methods=["GET"]),
            *(route for room in self._rooms for route in room.routes()),
        ]

    async def _models(self, _request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.names.listed))

    async def _model(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.names.entry, request.path_params["name"]))
