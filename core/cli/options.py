"""Options that commands share, each said once; and how a command takes a group of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from core.errors import ParameterError

JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON line.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
NewestOption = Annotated[int, typer.Option(min=1, help="At most so many, newest first.")]


def check_folder(output: Path | None) -> None:
    """Raises ParameterError for a file in a folder that isn't there: before the work, not after it."""
    if output is not None and not output.absolute().parent.is_dir():
        raise ParameterError(f"The folder {output.absolute().parent} does not exist.", hint="Make it.")


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command whose parameters may be dataclasses one that typer understands.

    Each field of such a dataclass becomes an option where the dataclass stands, with its name and default.
    """
    signature = inspect.signature(command, eval_str=True)
    groups = {
        parameter.name: parameter.annotation
        for parameter in signature.parameters.values()
        if dataclasses.is_dataclass(parameter.annotation)
    }

    @functools.wraps(command)
    def flat(**said: Any) -> None:
        for name, group in groups.items():
            said[name] = group(**{field.name: said.pop(field.name) for field in dataclasses.fields(group)})
        command(**said)

    flat.__signature__ = signature.replace(parameters=list(_flat(signature.parameters, groups)))
    return flat


def _flat(
    parameters: Mapping[str, inspect.Parameter], groups: Mapping[str, type]
) -> Iterator[inspect.Parameter]:
    for name, parameter in parameters.items():
        if name not in groups:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        for field in dataclasses.fields(groups[name]):
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )


def pairs(assignments: list[str]) -> dict[str, str]:
    """["seed=s"] as {"seed": "s"}: columns by the parameters that they give. Raises ParameterError."""
    found = {}
    for assignment in assignments:
        name, equals, column = assignment.partition("=")
        if not equals or not name or not column:
            raise ParameterError(f"{assignment!r} is not of the form NAME=COLUMN.", hint="seed=s, say.")
        found[name.strip()] = column
    return found
