"""What the catalogue keeps of models: when each was last loaded, and those imported where they lie."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import sqlalchemy as sa

from core.catalogue_schema import imported_models as _imports
from core.catalogue_schema import model_uses as _uses
from core.store import Store


def mark_used(store: Store, path: Path) -> None:
    """This folder or file is loaded now."""
    with store.transaction() as connection:
        connection.execute(sa.delete(_uses).where(_uses.c.path == str(path)))
        connection.execute(sa.insert(_uses).values(path=str(path), used_at=dt.datetime.now(dt.UTC)))


def last_used(store: Store) -> dict[str, dt.datetime]:
    """Path of each model that was ever loaded -> when it last was."""
    return {row["path"]: row["used_at"] for row in store.all(sa.select(_uses))}


def imported(store: Store) -> dict[str, Path]:
    """Name -> folder or GGUF file of each model that was imported by reference."""
    return {row["name"]: Path(row["path"]) for row in store.all(sa.select(_imports))}


def remember_import(store: Store, name: str, path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    store.execute(sa.insert(_imports).values(name=name, path=str(path), imported_at=now))


def forget_import(store: Store, name: str) -> None:
    store.execute(sa.delete(_imports).where(_imports.c.name == name))
