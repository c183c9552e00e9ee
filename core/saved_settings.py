"""Engine settings kept for a model, and used when it is loaded the next time. Kept in the catalogue."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from core import engine_settings
from core.catalogue_schema import engine_settings as _saved
from core.engines import choice
from core.errors import ParameterError
from core.store import Store
from core.types import EngineSpec

_IDENTITY = frozenset({"hub", "revision", "base_url"})
"""What says which model it is, not how it is loaded."""


class SavedSettings:
    """By a model's name as EngineSpec has it. Every method is one transaction, from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, model: str) -> EngineSpec | None:
        """The spec with what was kept; None when nothing was. What this version doesn't know is left out."""
        row = self._store.first(sa.select(_saved).where(_saved.c.model == model))
        if row is None:
            return None
        engine = row["engine"] if row["engine"] in choice.LOADERS else choice.suggest(model)
        spec = EngineSpec(engine=engine, model=model)
        for name, value in row["body"].items():
            with contextlib.suppress(ParameterError):  # another version kept it, and asked for more or less
                spec = engine_settings.apply(spec, {name: value})
        return spec

    def save(self, spec: EngineSpec) -> None:
        """Keep the engine and settings of `spec` for its model."""
        body = {name: value for name, value in engine_settings.given(spec).items() if name not in _IDENTITY}
        values = {"updated_at": dt.datetime.now(dt.UTC), "engine": spec.engine, "body": _plain(body)}
        query = sqlite.insert(_saved).values(model=spec.model, **values)
        self._store.execute(query.on_conflict_do_update(index_elements=["model"], set_=values))

    def forget(self, model: str) -> None:
        """Nothing happens where nothing was kept."""
        self._store.execute(sa.delete(_saved).where(_saved.c.model == model))

    def applied(self, spec: EngineSpec, *, engine_too: bool = False) -> EngineSpec:
        """`spec` with what was kept for its model, where it leaves things open and its engine takes them.

        With `engine_too` also the engine that was kept, where that can run here.
        """
        kept = self.find(spec.model)
        if kept is None:
            return spec
        if engine_too and choice.offer(kept.engine).obstacle is None:
            spec = engine_settings.for_engine(replace(spec, engine=kept.engine))
        there = engine_settings.given(spec)
        values = {
            name: value
            for name, value in engine_settings.given(kept).items()
            if name not in there and spec.engine in engine_settings.BY_NAME[name].engines
        }
        return engine_settings.apply(spec, values)


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in body.items()}
