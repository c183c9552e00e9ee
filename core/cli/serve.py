"""`python -m core serve`: the API without a browser, until Ctrl-C. A skin over the library."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from core.api.examples import examples
from core.api.server import ApiServer
from core.cli.engine import EngineOptions
from core.cli.options import grouped
from core.cli.session import say
from core.errors import ApiError
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.settings import load_settings
from core.store import Store

_LOOK_EVERY_S = 0.2


@grouped
def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; beyond this machine, a key is asked for.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one.")] = None,
    loaded: EngineOptions,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key of this name, and print it, once.")
    ] = None,
) -> None:
    """Answer OpenAI's API with one model, on http://127.0.0.1:8000 if not told otherwise.

    It needs no browser and no page. Ctrl-C ends it; exit code 1: the model could not be loaded, or not again.
    """
    with _opened() as (runtime, store, server):
        spec = loaded.asked().spec(runtime, SavedSettings(store))
        if key is not None:
            made, secret = server.keys.create(key)
            print(f"key {made.name}: {secret}  (it is not shown again)", flush=True)
        server.start(host, port)
        if server.wait().phase == "failed":
            raise ApiError(server.status().error)
        runtime.load(spec)
        try:
            _watch(runtime, server)
        except KeyboardInterrupt:
            say("ending")


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Runtime, Store, ApiServer]]:
    """What serves; leaves nothing running behind."""
    settings = load_settings()
    runtime = Runtime(settings)
    store = Store(settings.catalogue_path)
    server = ApiServer(runtime, store, settings)
    try:
        yield runtime, store, server
    finally:
        server.close()
        runtime.close()
        store.close()


def _watch(runtime: Runtime, server: ApiServer) -> None:
    """Say what the engine does, for ever. Raises what ended it, or the server."""
    stage = ""
    was_ready = False
    while True:
        status, api = runtime.status(), server.status()
        if api.phase == "failed":
            raise ApiError(api.error)
        if status.error is not None:
            raise status.error
        is_ready = status.phase == "ready"
        if is_ready and not was_ready:
            _say_ready(status.info.model, status.spec.engine, server)
        elif not is_ready and status.stage and status.stage != stage:
            stage = status.stage
            say(f"engine: {stage}")
        was_ready = is_ready
        time.sleep(_LOOK_EVERY_S)


def _say_ready(model: str, engine: str, server: ApiServer) -> None:
    api = server.status()
    print(f"{model} answers at {api.url}", flush=True)
    if api.needs_key and not server.keys.list():
        say("It refuses everybody until there is a key: start it with --key NAME.")
    task = "chat" if engine == "vllm" else "generate"
    print(examples(task, api.url, model, needs_key=api.needs_key)["curl"], end="", flush=True)
