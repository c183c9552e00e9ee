"""What somebody allowed for one model: its pickle files, its own Python code. By default, nothing."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Collection, Iterator

import sqlalchemy as sa

from core.catalogue_schema import model_permissions as _table
from core.hub.choosing import Permission
from core.settings import Settings
from core.store import Store
from core.types import Hub


def allowed(settings: Settings, model: str, hub: Hub | None = None) -> frozenset[Permission]:
    """`model` is a hub's id, or with `hub` None the folder of a model that was imported."""
    with _opened(settings) as store:
        rows = store.all(sa.select(_table.c.permission).where(_table.c.model == _key(model, hub)))
    return frozenset(row["permission"] for row in rows)


def allow(
    settings: Settings, model: str, permissions: Collection[Permission], hub: Hub | None = None
) -> None:
    """Remember them for this model, beside what was allowed before."""
    now = dt.datetime.now(dt.UTC)
    missing = frozenset(permissions) - allowed(settings, model, hub)
    with _opened(settings) as store, store.transaction() as connection:
        for permission in missing:
            values = {"model": _key(model, hub), "permission": permission, "granted_at": now}
            connection.execute(sa.insert(_table).prefix_with("OR IGNORE").values(values))


def forget(settings: Settings, model: str, hub: Hub | None = None) -> None:
    """Nothing is allowed for this model any more."""
    with _opened(settings) as store:
        store.execute(sa.delete(_table).where(_table.c.model == _key(model, hub)))


def _key(model: str, hub: Hub | None) -> str:
    return f"{hub or 'local'}:{model}"


@contextlib.contextmanager
def _opened(settings: Settings) -> Iterator[Store]:
    store = Store(settings.catalogue_path)
    try:
        yield store
    finally:
        store.close()
