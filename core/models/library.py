"""The library: every model on this machine, wherever it lies.

    embedded                 the one that comes with the workbench, prepared or not
    WORKBENCH_HOME/models    imported by copy, merged, put there by hand
    Hugging Face's cache     what this and other programs have downloaded
    ModelScope's cache       the same
    imported by reference    folders and GGUF files that stay where they are

A hub's files stay in the hub's own cache, so nothing is stored twice.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import embedded
from core.errors import ModelError
from core.settings import Settings
from core.store import Store
from core.types import EngineSpec, Hub

Source = Literal["embedded", "workspace", "huggingface", "modelscope", "imported"]
Format = Literal["safetensors", "gguf", "pickle", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryModel:
    """A model on this machine.

    `key` names it in addresses and in the catalogue, `model`, `hub` and `revision` are what an
    EngineSpec takes. `path` is a folder or a .gguf file; of the embedded model before it is prepared,
    the folder that it will have. `size_bytes` counts files that two revisions share once. `problem`
    is a sentence on why it can't be loaded, None where it can.
    """

    key: str
    name: str
    source: Source
    model: str
    path: Path
    hub: Hub | None = None
    repo: str | None = None
    revision: str | None = None
    format: Format = "safetensors"
    size_bytes: int = 0
    architecture: str | None = None
    context_tokens: int | None = None
    quantization: str | None = None
    license: str | None = None
    last_used_at: dt.datetime | None = None
    problem: str | None = None


class Library:
    """What is on this machine. Every method may be called from any thread."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def list(self) -> tuple[LibraryModel, ...]:
        """All models: the embedded one, then by name."""
        return (self._embedded(),)

    def find(self, name: str) -> LibraryModel:
        """The model with this key, or else name, hub id or path. Raises ModelError when there is none."""
        for model in self.list():
            if name in (model.key, model.name, model.repo, model.model, str(model.path)):
                return model
        raise ModelError(
            f"There is no model {name!r} on this machine.", hint="`python -m core models list` names them."
        )

    def of(self, spec: EngineSpec) -> LibraryModel | None:
        """The model that `spec` loads, None where it isn't in the library."""
        for model in self.list():
            if (model.model, model.hub) == (spec.model, spec.hub):
                return model
        return None

    def _embedded(self) -> LibraryModel:
        path = embedded.path(self._settings)
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.is_dir() else 0
        return LibraryModel(
            key="embedded",
            name=embedded.EMBEDDED_MODEL,
            source="embedded",
            model="embedded",
            path=path,
            size_bytes=size,
            license="Apache-2.0",
        )
