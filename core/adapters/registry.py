"""The adapters that are registered, by name: where each lies, and what it was made for."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core import embedded
from core.adapters import checks
from core.catalogue_schema import adapters as _adapters
from core.errors import ModelError, ParameterError, RunError
from core.models import locate
from core.run_spec import PromptSpec
from core.settings import Settings
from core.store import Store
from core.types import EngineInfo, EngineSpec, LoraAdapter

BASE = "base"
"""Stands for the model itself where an adapter is named: no adapter can be called so."""
_MOST_AT_ONCE = 8
_RANKS = (16, 32, 64, 128, 256, 320, 512)  # of those that vLLM knows
_NAME = re.compile(r"[\w][\w .+-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A registered adapter. `base` is what it says it was made for ("" if it says nothing).

    `checked_with` is the model here that it was compared with, None if that is not here yet.
    `source`: the hub's repository that it came from, "" for a folder of one's own.
    """

    number: int
    name: str
    folder: str
    base: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    added_at: dt.datetime
    source: str = ""
    checked_with: str | None = None

    @property
    def problem(self) -> str | None:
        """Why it can't be used now, None when it can."""
        if not (Path(self.folder) / checks.WEIGHTS).is_file():
            return f"Its folder {self.folder} is gone."
        return None

    @property
    def as_lora(self) -> LoraAdapter:
        """For a request."""
        return LoraAdapter(self.name, self.folder, self.number)

    def is_for(self, *models: str) -> bool:
        """Whether one of these names may be the model it was made for; True when it doesn't say."""
        known = [name for name in (self.base, self.checked_with) if name]
        return not known or any(checks.same_model(name, model) for name in known for model in models)


class Adapters:
    """All adapters of one workspace. Every method is one transaction, from any thread."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def add(self, name: str, folder: Path | str, *, base: str | None = None, source: str = "") -> Adapter:
        """Register the adapter in `folder`, which stays where it is.

        It is compared with the model it was made for, if that is here; `base` names or is the folder
        of another one to compare it with. Raises ModelError for a name that is taken, a folder
        without a usable adapter, or a model that it doesn't fit.
        """
        name = _checked_name(name)
        folder = Path(folder).expanduser().resolve()
        facts = checks.read_adapter(folder)
        model = base or facts.base
        found = find_base(model, self._settings)
        if base and found is None:
            raise ModelError(
                f"The model {base} is not on this machine.", hint="Give a folder, or leave the model out."
            )
        if found is not None:
            checks.check_base(facts, name, found, base or facts.base)
        values: dict[str, Any] = {
            "name": name,
            "folder": str(folder),
            "base": facts.base,
            "rank": facts.rank,
            "target_modules": list(facts.target_modules),
            "size_bytes": facts.size_bytes,
            "added_at": dt.datetime.now(dt.UTC),
            "source": source,
            "checked_with": model if found is not None else None,
        }
        with self._store.transaction() as connection:
            taken = sa.select(_adapters.c.number).where(_same(name))
            if connection.execute(taken).first() is not None:
                raise ModelError(f"There is an adapter {name!r} already.", hint="Choose another name.")
            (number,) = connection.execute(sa.insert(_adapters).values(values)).inserted_primary_key
        return _adapter({"number": number, **values})

    def list(self, base: str | None = None) -> tuple[Adapter, ...]:
        """By name; with `base` those that may be for this model."""
        rows = self._store.all(sa.select(_adapters).order_by(_adapters.c.name))
        found = tuple(map(_adapter, rows))
        return found if base is None else tuple(one for one in found if one.is_for(base))

    def find(self, name: str) -> Adapter:
        """Raises ModelError when there is none of this name, or its folder is gone."""
        row = self._store.first(sa.select(_adapters).where(_same(name)))
        if row is None:
            known = ", ".join(one.name for one in self.list()[:8]) or "none"
            raise ModelError(f"There is no adapter {name!r}.", hint=f"Registered: {known}.")
        found = _adapter(row)
        if found.problem:
            raise ModelError(f"The adapter {name!r} can't be used.", hint=found.problem)
        return found

    def lora(self, name: str | None) -> LoraAdapter | None:
        """What a request carries; None for no name and for "base". Raises as `find`."""
        return None if is_base(name) else self.find(name).as_lora

    def remove(self, name: str) -> None:
        """Forget it; its files stay. Raises ModelError when there is none of this name."""
        with self._store.transaction() as connection:
            if not connection.execute(sa.delete(_adapters).where(_same(name))).rowcount:
                raise ModelError(f"There is no adapter {name!r}.", hint="It was removed already.")

    def needed(self, spec: EngineSpec, names: Iterable[str | None], *, by_row: bool = False) -> EngineSpec:
        """The specification with LoRA where one of these adapters is asked for, or each row names one.

        Raises as `find`.
        """
        asked = [name for name in names if self.lora(name) is not None]
        if not asked and not by_row:
            return spec
        return self.with_lora(spec) if spec.engine == "vllm" and spec.enable_lora is None else spec

    def with_lora(self, spec: EngineSpec) -> EngineSpec:
        """The specification with LoRA, for all adapters that may be for its model."""
        model = embedded.EMBEDDED_MODEL if spec.model == "embedded" else spec.model
        found = [one for one in self.list() if one.is_for(model)]
        highest = max((one.rank for one in found), default=1)
        rank = next((rank for rank in _RANKS if rank >= highest), _RANKS[-1])
        return replace(
            spec,
            enable_lora=True,
            max_loras=spec.max_loras or min(max(1, len(found)), _MOST_AT_ONCE),
            max_lora_rank=spec.max_lora_rank or rank,
        )


def registered(store: Store) -> dict[str, LoraAdapter]:
    """All adapters as requests carry them, for `named`."""
    found = map(_adapter, store.all(sa.select(_adapters)))
    return {one.name.casefold(): one.as_lora for one in found}


def named(name: str | None, adapters: Mapping[str, LoraAdapter]) -> LoraAdapter | None:
    """The adapter of this name; None for no name and for "base". Raises ParameterError for an unknown one."""
    if is_base(name):
        return None
    found = adapters.get(name.casefold())
    if found is None:
        known = ", ".join(sorted(one.name for one in adapters.values())[:8]) or "none"
        raise ParameterError(f"There is no adapter {name!r}.", hint=f"Registered: {known}.")
    return found


def check_asked(prompt: PromptSpec, info: EngineInfo, adapters: Mapping[str, LoraAdapter]) -> None:
    """Raise where every row would fail: the engine takes no adapters, or the run's isn't registered."""
    if prompt.adapter is None and prompt.adapter_column is None:
        return
    if "adapters" in info.cannot:
        raise RunError(
            f"The run asks for adapters. {info.cannot['adapters']}",
            hint="Load the model with LoRA and resume.",
        )
    named(prompt.adapter, adapters)


def is_base(name: str | None) -> bool:
    """Whether the model itself answers under this name."""
    return name is None or name.casefold() == BASE


def find_base(name: str, settings: Settings) -> Path | None:
    """The folder of a model that is on this machine, by its name, hub id or folder. None: it isn't here.

    An id whose model is here under its own name alone, or a folder of another machine, is found as well.
    """
    if not name:
        return None
    if checks.same_model(name, embedded.EMBEDDED_MODEL):
        name = "embedded"
    found = locate.find(name, settings) or locate.find(checks.own_name(name), settings)
    return found.path if found is not None and (found.path / "config.json").is_file() else None


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} can't be an adapter's name.",
            hint="Take letters, digits, spaces and . _ + -, 64 at most, and begin with a letter or digit.",
        )
    if name.casefold() == BASE:
        raise ModelError(f"{name!r} stands for the model itself.", hint="Choose another name.")
    return name


def _same(name: str) -> sa.ColumnElement[bool]:
    return sa.func.casefold(_adapters.c.name) == name.casefold()


def _adapter(row: dict[str, Any]) -> Adapter:
    return Adapter(**{**row, "target_modules": tuple(row["target_modules"])})
