"""`python -m core models adapters`: LoRA adapters registered, removed, merged. A skin over the library."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import typer

from core.adapters.merging import Merges
from core.adapters.registry import Adapter, Adapters
from core.cli.options import JsonLinesOption
from core.cli.session import say
from core.errors import ModelError
from core.settings import Settings, load_settings
from core.store import Store
from core.types import Hub

app = typer.Typer(help="LoRA adapters: small additions to a model, by name.", no_args_is_help=True)
_LOOK_EVERY_S = 0.3


@app.command("list")
def list_adapters(
    as_json: JsonLinesOption = False,
) -> None:
    """List the adapters: name, rank, size, what it was made for, folder."""
    with _opened() as (adapters, _settings, _store):
        for one in adapters.list():
            print(json.dumps(_as_json(one), ensure_ascii=False) if as_json else _as_line(one))


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|REPOSITORY", help="Its folder, or its id on a hub: owner/name.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Compare it with this model, not the one that it names.")
    ] = None,
    hub: Annotated[
        str, typer.Option(help="Where a repository is: huggingface or modelscope.")
    ] = "huggingface",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
) -> None:
    """Register an adapter, checked against its model if that is here."""
    if hub not in get_args(Hub):
        raise typer.BadParameter(f"--hub is {' or '.join(get_args(Hub))}, not {hub!r}.")
    with _opened() as (adapters, settings, _store):
        folder, came_from = Path(source).expanduser(), ""
        if not folder.is_dir():
            from core.hub.downloads import fetch_now

            if source.count("/") != 1 or folder.is_absolute() or source.startswith("."):
                raise ModelError(f"There is no folder {source}.", hint="Give one, or a hub's owner/name.")
            folder, came_from = fetch_now(hub, source, revision, settings, say), source
        found = adapters.add(name, folder, base=base, source=came_from)
    compared = f"it fits {found.checked_with}" if found.checked_with else "its model is not here to compare"
    say(f"{found.name}: rank {found.rank}, {compared}")


@app.command()
def delete(name: Annotated[str, typer.Argument(help="The adapter.")]) -> None:
    """Forget an adapter; its files stay."""
    with _opened() as (adapters, _settings, _store):
        adapters.remove(name)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="The adapter.")],
    name: Annotated[str, typer.Argument(help="What to call the new model.")],
    base: Annotated[
        str | None, typer.Option(help="Merge into this model, not the one that it was made for.")
    ] = None,
) -> None:
    """Make a new model of the library: the adapter added to its model. Prints its folder."""
    with _opened() as (_adapters, settings, store):
        merges = Merges(settings, store)
        merge_id = merges.start(adapter, name, base=base)
        shown = ""
        try:
            while (view := merges.wait(merge_id, _LOOK_EVERY_S)).state == "running":
                stage = view.stage if view.share is None else f"{view.stage}: {view.share:.0%}"
                if stage != shown:
                    say(stage)
                    shown = stage
        except KeyboardInterrupt:
            merges.cancel(merge_id)
            merges.wait(merge_id)
            say("cancelled; nothing is left of it")
            raise SystemExit(130) from None
        finally:
            merges.close()
    if view.state != "done":
        raise ModelError(f"{adapter} could not be merged: {view.error}")
    print(view.path)


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Adapters, Settings, Store]]:
    settings = load_settings()
    with contextlib.closing(Store(settings.catalogue_path)) as store:
        yield Adapters(settings, store), settings, store


def _as_json(one: Adapter) -> dict[str, object]:
    return {
        "name": one.name,
        "number": one.number,
        "rank": one.rank,
        "base": one.base,
        "checked_with": one.checked_with,
        "target_modules": list(one.target_modules),
        "size_bytes": one.size_bytes,
        "source": one.source,
        "folder": one.folder,
        "problem": one.problem,
    }


def _as_line(one: Adapter) -> str:
    size = f"{one.size_bytes / 1e6:>8.1f} MB"
    line = f"{one.name:<24}  rank {one.rank:>3}  {size}  {one.base or '-'}  {one.folder}"
    return line + (f"\n  ! {one.problem}" if one.problem else "")
