"""The API on a free port, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from core.api.server import ApiServer
from core.runtime import Runtime
from core.store import Store


@contextlib.contextmanager
def serving(runtime: Runtime, **settings: Any) -> Iterator[tuple[ApiServer, httpx.Client]]:
    """The server and a client of it; `settings` are changed for the server alone."""
    store = Store(runtime.settings.catalogue_path)
    server = ApiServer(runtime, store, runtime.settings.model_copy(update=settings))
    server.start(port=0)
    status = server.wait(20)
    assert status.phase == "serving", status.error
    try:
        with httpx.Client(base_url=status.url, timeout=60) as client:
            yield server, client
    finally:
        server.close()
        store.close()
