"""Where the model of an EngineSpec lies: prepared, in a folder, in a hub's cache, or fetched now."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core import embedded
from core.errors import ModelError, WorkbenchError
from core.hub import permissions
from core.models import caches, checkpoint, uses
from core.settings import Settings
from core.store import Store
from core.types import EngineSpec, Hub

Report = Callable[[str], None]

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A model on this machine. `name` is for people; `path` is a folder, or a .gguf file for llama.cpp.

    `revision` is the commit or branch of a hub, None of what comes from no hub.
    """

    name: str
    path: Path
    revision: str | None = None

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def locate(spec: EngineSpec, settings: Settings, report: Report) -> LocatedModel:
    """Have the model that `spec` names, whole, on this machine; a hub's is fetched where it is not.

    The engine "llamacpp" gets a GGUF file, the others a folder. Raises ModelError.
    """
    if spec.model == "embedded":
        report("Preparing the model")
        prepare = embedded.gguf if spec.engine == "llamacpp" else embedded.prepare
        found = LocatedModel(embedded.EMBEDDED_MODEL, prepare(settings, report))
    else:
        there = find(spec.model, settings, hub=spec.hub, revision=spec.revision)
        if there is not None and _snapshot_of(there.path) and _is_partial(there.path):
            there = None  # a download that was broken off goes on
        found = _checked(there or _fetched(spec, settings, report), spec, settings)
    _remember_use(settings, found.path)
    return found


def find(
    model: str, settings: Settings, *, hub: Hub | None = None, revision: str | None = None
) -> LocatedModel | None:
    """What `model` names on this machine, whole or not; None where nothing is. Asks no hub."""
    if model == "embedded":
        folder = embedded.path(settings)
        return LocatedModel(embedded.EMBEDDED_MODEL, folder) if embedded.is_ready(settings) else None
    if hub is None:
        # made absolute, not resolved: a file of a hub's cache is a link to one without a name
        path = Path(model).expanduser().absolute()
        if path.is_dir() or (path.suffix.lower() == ".gguf" and path.is_file()):
            return _named(path, settings)
        named = _of_the_workspace(model, settings)
        if named is not None:
            return LocatedModel(model, named)
    snapshot = caches.find(model, revision, hub)
    if snapshot is None:
        return None
    return LocatedModel(snapshot.repo, snapshot.folder, snapshot.revision)


def file_of(model: str, settings: Settings) -> str:
    """The folder, or the GGUF file, that `model` means here: what its engine is chosen by.

    `model` itself where nothing of that name is here.
    """
    found = find(model, settings)
    if found is None:
        return model
    return str(checkpoint.ggufs(found.path)[0] if _only_gguf(found.path) else found.path)


def _named(path: Path, settings: Settings) -> LocatedModel:
    """A folder or file: under the name that it was imported as, or a hub's where it lies in its cache."""
    snapshot = _snapshot_of(path)
    if snapshot is None:
        with contextlib.closing(Store(settings.catalogue_path)) as store:
            names = [name for name, where in uses.imported(store).items() if where == path]
        return LocatedModel(names[0] if names else path.name.removesuffix(".gguf"), path)
    name = snapshot.repo if path.is_dir() else f"{snapshot.repo}/{path.name}"
    return LocatedModel(name, path, snapshot.revision)


def _of_the_workspace(name: str, settings: Settings) -> Path | None:
    """A model that was imported under this name, or lies in the workspace's models folder."""
    with contextlib.closing(Store(settings.catalogue_path)) as store:
        path = uses.imported(store).get(name)
    if path is not None:
        return path
    if "/" in name or name.startswith("."):
        return None
    folder = settings.models_dir / name
    files = checkpoint.ggufs(folder) if folder.is_dir() and not (folder / "config.json").is_file() else []
    if len(files) == 1:
        return files[0]
    return folder if folder.is_dir() else None


def _snapshot_of(path: Path) -> caches.Snapshot | None:
    """The snapshot of a hub's cache that this is, or lies in."""
    folder = path.resolve() if path.is_dir() else path.parent.resolve()
    return next((one for one in caches.snapshots() if one.folder == folder), None)


def _is_partial(path: Path) -> bool:
    return path.is_dir() and not checkpoint.ggufs(path) and checkpoint.look(path, pickle=True).partial


def _fetched(spec: EngineSpec, settings: Settings, report: Report) -> LocatedModel:
    if not _HUB_ID.fullmatch(spec.model):
        raise ModelError(
            f"There is no model {spec.model!r}.",
            hint="Give 'embedded', a folder, a GGUF file, a name that `models list` shows, or a hub's id.",
        )
    from core.hub import downloads

    hub = spec.hub or "huggingface"
    path = downloads.fetch_now(hub, spec.model, spec.revision, settings, report)
    found = find(spec.model, settings, hub=hub, revision=spec.revision)
    return found or LocatedModel(spec.model, path, spec.revision)


def _checked(model: LocatedModel, spec: EngineSpec, settings: Settings) -> LocatedModel:
    """The model in the form that the engine reads. Raises ModelError that says what is wrong with it."""
    snapshot = _snapshot_of(model.path)
    asked = (snapshot.repo, snapshot.hub) if snapshot else (str(model.path), None)
    allowed = permissions.allowed(settings, *asked)
    if spec.trust_remote_code and snapshot and "code" not in allowed:
        raise ModelError(
            f"{model.name} may not run code of its own.",
            hint="Download it with its code allowed, if you trust its owner; it then has your rights.",
        )
    if spec.engine == "llamacpp":
        return _checked_gguf(model)
    if model.path.is_file() or _only_gguf(model.path):
        raise ModelError(
            f"{model.name} is a GGUF file, which only llama.cpp reads here.",
            hint="Choose the engine llama.cpp, or the model's safetensors version.",
        )
    found = checkpoint.look(model.path, pickle="pickle" in allowed)
    if found.format == "adapter":
        raise ModelError(
            f"{model.name} is a LoRA adapter, no model.",
            hint="Load its base model, and register it under Adapters.",
        )
    if found.problem:
        raise ModelError(f"{model.name} can't be loaded. {found.problem}", hint=found.hint)
    return model


def _only_gguf(folder: Path) -> bool:
    return folder.is_dir() and bool(checkpoint.ggufs(folder)) and not any(folder.glob("*.safetensors"))


def _checked_gguf(model: LocatedModel) -> LocatedModel:
    path = model.path
    if path.is_dir():
        files = checkpoint.ggufs(path)
        if not files:
            raise ModelError(
                f"{model.name} holds no GGUF file, and llama.cpp reads no other.",
                hint="Choose another engine, or a GGUF version of the model.",
            )
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:6])
            raise ModelError(f"{model.name} holds several GGUF files: {names}.", hint="Give one's path.")
        path = files[0]
    found = checkpoint.look_gguf(path)
    if found.problem:
        raise ModelError(f"{model.name} can't be loaded. {found.problem}", hint=found.hint)
    return LocatedModel(model.name, path, model.revision)


def _remember_use(settings: Settings, path: Path) -> None:
    try:
        with contextlib.closing(Store(settings.catalogue_path)) as store:
            uses.mark_used(store, path)
    except WorkbenchError as error:  # a full disk: the model can be loaded all the same
        _log.warning("When %s was loaded can't be noted: %s", path, error)
