"""`python -m core models endpoints`: servers with OpenAI's API."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from core.endpoints import Endpoints
from core.secrets import Secrets
from core.settings import load_settings
from core.store import Store

KEY_VARIABLE = "WORKBENCH_ENDPOINT_KEY"
app = typer.Typer(help="Servers with OpenAI's API, to be used as engines.", no_args_is_help=True)


@app.command("list")
def list_endpoints() -> None:
    """List the endpoints that were added."""
    with _endpoints() as endpoints:
        for endpoint in endpoints.list():
            print(f"{endpoint.base_url}\t{endpoint.name}\t{'key saved' if endpoint.has_key else 'no key'}")


@app.command()
def add(
    base_url: Annotated[str, typer.Argument(help="Such as http://server:8000/v1.")],
    name: Annotated[str, typer.Option(help="What to call it; the server's own name without one.")] = "",
    with_key: Annotated[
        bool, typer.Option("--key", help=f"It wants a key: from {KEY_VARIABLE}, or else it is asked for.")
    ] = False,
) -> None:
    """Add an endpoint, and print the models it has. A key is never taken from the command line."""
    key = None
    if with_key:
        key = os.environ.get(KEY_VARIABLE) or typer.prompt("Key", hide_input=True, err=True)
    with _endpoints() as endpoints:
        endpoint = endpoints.save(base_url, name, key)
        for model in endpoints.models(endpoint.base_url):
            print(model.name)
        print(f"Use one: --engine-arg base_url={endpoint.base_url} --model NAME", file=sys.stderr)


@app.command()
def delete(base_url: Annotated[str, typer.Argument(help="Its address, as `list` prints it.")]) -> None:
    """Forget an endpoint and its key."""
    with _endpoints() as endpoints:
        endpoints.delete(base_url)


@contextlib.contextmanager
def _endpoints() -> Iterator[Endpoints]:
    settings = load_settings()
    store = Store(settings.catalogue_path)
    try:
        yield Endpoints(store, Secrets(settings))
    finally:
        store.close()
