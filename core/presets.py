"""Sampling parameters under a name, shared by all pages and the command line. Kept in the catalogue."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from core import sampling
from core.catalogue_schema import presets as _presets
from core.errors import ParameterError
from core.sampling import BY_NAME
from core.store import Store

MAX_NAME_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """`params` as of `core.sampling`; `about`: a note for people."""

    name: str
    params: Mapping[str, Any]
    about: str = ""
    updated_at: dt.datetime


class Presets:
    """All presets of one workspace. Every method is one transaction, from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self) -> list[Preset]:
        """By name, upper and lower case alike."""
        query = sa.select(_presets).order_by(sa.func.lower(_presets.c.name), _presets.c.name)
        return [_preset(row) for row in self._store.all(query)]

    def find(self, name: str) -> Preset:
        """Raises ParameterError, with the nearest name that exists."""
        row = self._store.first(sa.select(_presets).where(_presets.c.name == name.strip()))
        if row is None:
            raise self._unknown(name)
        return _preset(row)

    def save(self, name: str, params: Mapping[str, Any], about: str = "") -> Preset:
        """Keep `params` as `name`, in place of what had that name. Raises ParameterError."""
        preset = Preset(
            name=checked_name(name),
            params=sampling.validate(params),
            about=about.strip(),
            updated_at=dt.datetime.now(dt.UTC),
        )
        values = {"updated_at": preset.updated_at, "params": preset.params, "about": preset.about}
        query = sqlite.insert(_presets).values(name=preset.name, **values)
        self._store.execute(query.on_conflict_do_update(index_elements=["name"], set_=values))
        return preset

    def delete(self, name: str) -> None:
        """Raises ParameterError when there is none of that name."""
        name = self.find(name).name
        self._store.execute(sa.delete(_presets).where(_presets.c.name == name))

    def rename(self, name: str, new_name: str) -> None:
        """Raises ParameterError when there is no `name`, or another preset is called `new_name`."""
        name, new_name = self.find(name).name, checked_name(new_name)
        if name == new_name:
            return
        values = {"name": new_name, "updated_at": dt.datetime.now(dt.UTC)}
        with self._store.transaction() as connection:
            if connection.scalar(sa.select(_presets.c.name).where(_presets.c.name == new_name)):
                raise ParameterError(
                    f"There is a preset {new_name!r} already.",
                    hint="Choose another name, or delete that one.",
                )
            connection.execute(sa.update(_presets).where(_presets.c.name == name).values(values))

    def _unknown(self, name: str) -> ParameterError:
        names = [preset.name for preset in self.list()]
        near = get_close_matches(name, names, n=1)
        known = f"Presets: {', '.join(names)}." if names else "None is saved yet."
        return ParameterError(
            f"There is no preset {name!r}.", hint=f"Did you mean {near[0]!r}?" if near else known
        )


def checked_name(name: str) -> str:
    """`name` without the space around it. Raises ParameterError for one that can't be used."""
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise ParameterError(
            f"A preset can't be named {name[:MAX_NAME_CHARACTERS]!r}.",
            hint=f"Give it a name on one line, of 1 to {MAX_NAME_CHARACTERS} characters.",
        )
    return name


def _preset(row: Mapping[str, Any]) -> Preset:
    """JSON turned token ids into texts. A name that this version doesn't know is refused when it is used."""
    params = {
        name: BY_NAME[name].parse(value) if name in BY_NAME else value
        for name, value in row["params"].items()
    }
    return Preset(**{**row, "params": params})
