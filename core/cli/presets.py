"""`python -m core presets`: the sampling parameters that are kept under a name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated

import typer

from core import sampling
from core.cli.options import JsonLinesOption
from core.errors import ParameterError
from core.presets import Presets
from core.settings import load_settings
from core.store import Store

app = typer.Typer(help="Sampling parameters kept under a name.", no_args_is_help=True)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The preset's name.")]


@contextlib.contextmanager
def opened() -> Iterator[Presets]:
    """The workspace's presets."""
    with contextlib.closing(Store(load_settings().catalogue_path)) as store:
        yield Presets(store)


@app.command("list")
def list_presets(
    as_json: JsonLinesOption = False,
) -> None:
    """List the presets: name, parameters, note."""
    with opened() as presets:
        found = presets.list()
    for preset in found:
        if as_json:
            line = {"name": preset.name, "params": preset.params, "about": preset.about}
            print(json.dumps(line, ensure_ascii=False))
        else:
            parts = [preset.name, " ".join(sampling.as_assignments(preset.params)), preset.about]
            print("  ".join(part for part in parts if part))


@app.command()
def show(name: _Name) -> None:
    """Print a preset's parameters, one NAME=VALUE a line, as --param takes them."""
    with opened() as presets:
        preset = presets.find(name)
    for assignment in sampling.as_assignments(preset.params):
        print(assignment)


@app.command()
def save(
    name: _Name,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A sampling parameter; repeatable. `python -m core params` lists them."
        ),
    ] = None,
    about: Annotated[str, typer.Option(help="A note on what it is for.", show_default=False)] = "",
) -> None:
    """Keep parameters as a preset, in place of what had that name."""
    if not param:
        raise ParameterError("A preset needs parameters.", hint="Give --param temperature=0.2, say.")
    params = sampling.parse_assignments(param)
    with opened() as presets:
        presets.save(name, params, about)


@app.command()
def rename(
    name: _Name, new_name: Annotated[str, typer.Argument(metavar="NEW_NAME", help="Its new name.")]
) -> None:
    """Give a preset another name."""
    with opened() as presets:
        presets.rename(name, new_name)


@app.command()
def delete(name: _Name) -> None:
    """Delete a preset. Runs that used it keep their parameters."""
    with opened() as presets:
        presets.delete(name)
