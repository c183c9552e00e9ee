"""The library: every model on this machine, wherever it lies.

    embedded                 the one that comes with the workbench, prepared or not
    WORKBENCH_HOME/models    imported by copy, merged, put there by hand
    Hugging Face's cache     what this and other programs have downloaded
    ModelScope's cache       the same
    imported by reference    folders and GGUF files that stay where they are

A hub's files stay in the hub's own cache, so nothing is stored twice.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime as dt
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core import embedded
from core.errors import ModelError
from core.hub import permissions
from core.models import caches, checkpoint, locate, uses
from core.models.checkpoint import Checkpoint, Format
from core.models.facts import ModelFacts
from core.settings import Settings
from core.store import Store
from core.types import EngineSpec, Hub

Source = Literal["embedded", "workspace", "huggingface", "modelscope", "imported"]
SOURCES: Mapping[Source, str] = {
    "embedded": "embedded",
    "workspace": "workspace",
    "huggingface": "Hugging Face",
    "modelscope": "ModelScope",
    "imported": "imported",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryModel:
    """A model on this machine.

    `key` names it in addresses and commands; `model`, `hub` and `revision` are what an EngineSpec
    takes. `path` is a folder or a .gguf file; of the embedded model before it is prepared, the folder
    that it will have. `size_bytes` counts a file that two names mean once. `problem` is a sentence on
    why it can't be loaded, with what to do in `hint`; None where it can. `facts` are None where they
    can't be read.
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
    facts: ModelFacts | None = None
    license: str | None = None
    last_used_at: dt.datetime | None = None
    problem: str | None = None
    hint: str = ""

    @property
    def architecture(self) -> str | None:
        return self.facts.architecture if self.facts else None

    @property
    def context_tokens(self) -> int | None:
        return self.facts.context_tokens if self.facts else None

    @property
    def quantization(self) -> str | None:
        return self.facts.quantization if self.facts else None


class Library:
    """What is on this machine. Every method may be called from any thread."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._seen: dict[tuple[Path, bool], tuple[object, Checkpoint]] = {}
        self._lock = threading.Lock()

    def list(self) -> tuple[LibraryModel, ...]:
        """All models: the embedded one, then by name. Files that did not change are read once."""
        used = uses.last_used(self._store)
        found = [
            replace(one, last_used_at=used.get(str(one.path)))
            for one in self._everything()
            if one.format != "adapter"
        ]
        return (self._embedded(used), *sorted(found, key=lambda one: (one.name.casefold(), one.key)))

    def adapters(self) -> tuple[LibraryModel, ...]:
        """LoRA adapters that lie among the models: downloaded or put there, registered or not."""
        return tuple(one for one in self._everything() if one.format == "adapter")

    def find(self, name: str) -> LibraryModel:
        """The model with this key, or else name, hub id or path. Raises ModelError when it isn't one."""
        models = self.list()
        for model in models:
            if name == model.key:
                return model
        named = [one for one in models if name in (one.name, one.repo, one.model, str(one.path))]
        if len(named) > 1:
            keys = ", ".join(one.key for one in named)
            raise ModelError(f"{name!r} may mean several models: {keys}.", hint="Name one by its key.")
        if not named:
            raise ModelError(f"There is no model {name!r} on this machine.", hint="See `models list`.")
        return named[0]

    def of(self, spec: EngineSpec) -> LibraryModel | None:
        """The model that `spec` loads, None where it isn't in the library or on a remote server."""
        if spec.engine in ("openai", "scripted"):
            return None
        models = self.list()
        for model in models:
            if (model.model, model.hub, model.revision) == (spec.model, spec.hub, spec.revision):
                return model
        place = locate.find(spec.model, self._settings, hub=spec.hub, revision=spec.revision)
        return next((one for one in models if place is not None and place.path == one.path), None)

    def delete(self, key: str, *, loaded: EngineSpec | None = None) -> int:
        """Delete a model, and give the bytes that this freed; of a reference, nothing is deleted but it.

        `loaded`: what the engine has now, which is refused, as is the embedded model. Raises ModelError.
        """
        model = self.find(key)
        if model.source == "embedded":
            raise ModelError(f"{model.name} stays: it comes with the workbench.", hint="Delete another one.")
        in_use = self.of(loaded) if loaded is not None else None
        if in_use is not None and in_use.key == model.key:
            raise ModelError(f"{model.name} is loaded.", hint="Unload it or load another model first.")
        if model.source == "imported":
            uses.forget_import(self._store, model.name)
            return 0
        if model.source == "workspace":
            freed = _remove(model.path, self._settings.models_dir)
        else:
            snapshot = next(one for one in caches.snapshots() if model.path.is_relative_to(one.folder))
            files = () if model.path == snapshot.folder else checkpoint.gguf_parts(model.path)[0]
            freed = caches.remove(snapshot, files)
        permissions.forget(self._settings, model.repo or str(model.path), model.hub)
        return freed

    # -- where they come from -----------------------------------------------------------

    def _everything(self) -> Iterator[LibraryModel]:
        yield from self._workspace()
        for name, path in uses.imported(self._store).items():
            yield from self._at(path, f"imported:{name}", name, "imported")
        for snapshot in caches.snapshots():
            yield from self._cached(snapshot)

    def _embedded(self, used: Mapping[str, dt.datetime]) -> LibraryModel:
        path = embedded.path(self._settings)
        ready = embedded.is_ready(self._settings)
        seen = self._look(path) if ready else None
        return LibraryModel(
            key="embedded",
            name=embedded.EMBEDDED_MODEL,
            source="embedded",
            model="embedded",
            path=path,
            size_bytes=seen.size_bytes if seen else 0,
            facts=seen.facts if seen else None,
            license=seen.license if seen and seen.license else "Apache-2.0",
            last_used_at=used.get(str(path)),
            problem=seen.problem if seen else None,
            hint="Delete its folder: it is made again when it is loaded." if seen and seen.problem else "",
        )

    def _workspace(self) -> Iterator[LibraryModel]:
        for path in sorted(self._settings.models_dir.iterdir()):
            if path.name.startswith(".") or path == embedded.path(self._settings):
                continue
            if path.is_dir() or path.suffix == ".gguf":
                name = path.name.removesuffix(".gguf")
                yield from self._at(path, f"workspace:{path.name}", name, "workspace")

    def _cached(self, snapshot: caches.Snapshot) -> Iterator[LibraryModel]:
        key = f"{snapshot.hub}:{snapshot.repo}"
        if snapshot.revision and not {"main", "master"} & {snapshot.revision, *snapshot.names}:
            key = f"{key}@{snapshot.revision}"
        for model in self._at(snapshot.folder, key, snapshot.repo, snapshot.hub, snapshot):
            if model.path == snapshot.folder:
                yield replace(model, model=snapshot.repo, hub=snapshot.hub, revision=snapshot.revision)
            else:  # one of its GGUF files: a spec names it by its path
                yield replace(model, revision=snapshot.revision)

    def _at(
        self, path: Path, key: str, name: str, source: Source, snapshot: caches.Snapshot | None = None
    ) -> Iterator[LibraryModel]:
        """What a folder or file holds; a model that says so where it can't be read."""
        try:
            yield from self._models_at(path, key, name, source, snapshot)
        except OSError as error:
            problem = f"It can't be read: {error.strerror or error}."
            yield LibraryModel(
                key=key,
                name=name,
                source=source,
                model=str(path),
                path=path,
                format="unknown",
                problem=problem,
            )

    def _models_at(
        self, path: Path, key: str, name: str, source: Source, snapshot: caches.Snapshot | None
    ) -> Iterator[LibraryModel]:
        """A model, or a GGUF model in each of its files."""
        repo, hub = (snapshot.repo, snapshot.hub) if snapshot else (None, None)
        made = lambda key, name, path, seen: LibraryModel(  # noqa: E731
            key=key,
            name=name,
            source=source,
            model=str(path),
            path=path,
            repo=repo,
            format=seen.format,
            size_bytes=seen.size_bytes,
            facts=seen.facts,
            license=seen.license,
            problem=seen.problem,
            hint=seen.hint,
        )
        if not path.exists():
            gone = Checkpoint(format="unknown", files=(), size_bytes=0)
            hint = "Put it back, or delete it here: nothing else is deleted with it."
            yield replace(made(key, name, path, gone), problem=f"{path} is gone.", hint=hint)
            return
        files = [path] if path.is_file() else checkpoint.ggufs(path)
        if path.is_dir() and (not files or any(path.glob("*.safetensors"))):
            seen = self._look(path)
            if seen.format == "pickle":
                allowed = permissions.allowed(self._settings, repo or str(path), hub)
                seen = self._look(path, pickle="pickle" in allowed)
            yield made(key, name, path, seen)
        for file in files:
            alone = len(files) == 1
            seen = self._look(file)
            file_key = key if alone and snapshot is None else f"{key}/{file.name}"
            file_name = name if alone and snapshot is None else f"{name}/{file.name}"
            yield made(file_key, file_name, file, seen)

    def _look(self, path: Path, *, pickle: bool = False) -> Checkpoint:
        """`checkpoint.look`, once for as long as nothing changes there."""
        stamp = _stamp(path)
        with self._lock:
            kept = self._seen.get((path, pickle))
        if kept is not None and kept[0] == stamp:
            return kept[1]
        found = checkpoint.look_gguf(path) if path.is_file() else checkpoint.look(path, pickle=pickle)
        with self._lock:
            self._seen[path, pickle] = (stamp, found)
        return found


def _stamp(path: Path) -> builtins.list[tuple[str, int, int]]:
    """Changes when a file in the folder is added, removed or written."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    stats = []
    for file in files:
        with contextlib.suppress(OSError):  # a link to a file that isn't there
            stat = file.stat()
            stats.append((file.name, stat.st_mtime_ns, stat.st_size))
    return stats


def _remove(path: Path, models_dir: Path) -> int:
    """A folder or file of the workspace; a link there is removed, what it means stays. Gives bytes freed."""
    try:
        if path.is_symlink():
            path.unlink()
            return 0
        if path.is_file():
            parts = checkpoint.gguf_parts(path)[0]
            freed = checkpoint.size_of(parts)
            for part in parts:
                part.unlink()
            if path.parent != models_dir and not any(path.parent.iterdir()):
                path.parent.rmdir()
        else:
            freed = caches.bytes_in(path)
            gone = path.with_name(f".{path.name}.deleted")  # never seen half deleted
            shutil.rmtree(gone, ignore_errors=True)
            path.rename(gone)
            shutil.rmtree(gone)
        return freed
    except OSError as error:
        raise ModelError(
            f"{path.name} could not be deleted: {error.strerror or error}.",
            hint=f"Check that {path} is yours to change.",
        ) from error
