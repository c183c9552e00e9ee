"""A folder or GGUF file of this machine becomes a model of the library: where it lies, or as a copy."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core.errors import ModelError, WorkbenchError
from core.hub import permissions
from core.hub.choosing import Permission
from core.hub.records import size_words
from core.models import checkpoint, uses
from core.models.checkpoint import Checkpoint
from core.settings import Settings
from core.store import Store

Progress = Callable[[int, int], None]
"""Called with the bytes copied, and all that there are. What it raises ends the copy, without a trace."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COPIED = frozenset((".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"))
_CHUNK_BYTES = 8 << 20
_SPARE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What can be imported: a checked folder or GGUF file. `files` are those that a copy takes."""

    path: Path
    name: str
    found: Checkpoint
    files: tuple[Path, ...]

    @property
    def total_bytes(self) -> int:
        return checkpoint.size_of(self.files)


def check(path: Path | str, *, allow: Collection[Permission] = ()) -> Candidate:
    """Raises ModelError that says what is missing, damaged or not allowed."""
    path = Path(path).expanduser().absolute()
    try:
        if path.is_dir():
            return _check_folder(path, frozenset(allow))
        if not path.is_file():
            raise ModelError(f"There is no {path}.", hint="Give a folder or a GGUF file of this machine.")
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                f"{path.name} is no GGUF file.", hint="Give the whole folder of a model, or a *.gguf file."
            )
        found = checkpoint.look_gguf(path)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}.") from error
    _demand(path, found)
    return Candidate(path=path, name=suggested_name(path), found=found, files=found.files)


def _check_folder(path: Path, allow: frozenset[Permission]) -> Candidate:
    ggufs = checkpoint.ggufs(path)
    if ggufs and not any(path.glob("*.safetensors")):
        if len(ggufs) == 1:
            return check(ggufs[0])
        names = ", ".join(file.name for file in ggufs[:4])
        raise ModelError(f"{path.name} holds several GGUF files: {names}.", hint="Give the path of one.")
    found = checkpoint.look(path, pickle="pickle" in allow)
    if found.format == "adapter":
        raise ModelError(
            f"{path.name} holds a LoRA adapter, no whole model.", hint="Register it under Adapters."
        )
    _demand(path, found)
    suffixes = set(_COPIED)
    if found.format == "pickle":
        suffixes.update(checkpoint.PICKLES)
    if "code" in allow:
        suffixes.add(".py")
    files = tuple(
        file
        for file in found.files
        if file.suffix.lower() in suffixes or file.name.upper().startswith(("LICENSE", "NOTICE"))
    )
    return Candidate(path=path, name=suggested_name(path), found=found, files=files)


def _demand(path: Path, found: Checkpoint) -> None:
    if found.problem:
        raise ModelError(f"{path.name} can't be imported. {found.problem}", hint=found.hint)


def suggested_name(path: Path) -> str:
    """The folder's or file's own, without what a name can't have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.removesuffix(".gguf")).strip("-._")
    return name[:96] or "model"


def import_model(
    candidate: Candidate,
    settings: Settings,
    store: Store,
    *,
    name: str = "",
    copy: bool = False,
    allow: Collection[Permission] = (),
    progress: Progress = lambda done, total: None,
) -> str:
    """Put it into the library under `name`, and give its key.

    Without `copy` it stays where it is, and must stay there. `allow` is remembered for this model.
    Raises ModelError for a name that is taken or can't be one, and on a full disk.
    """
    name = free_name(name or candidate.name, settings, store)
    if not copy:
        uses.remember_import(store, name, candidate.path)
        _remember(settings, candidate.path, allow)
        return f"imported:{name}"
    target = _copy(candidate, name, settings, progress)
    _remember(settings, target, allow)
    return f"workspace:{target.name}"


def free_name(name: str, settings: Settings, store: Store) -> str:
    """The name, checked. Raises ModelError when it is taken or can't be one."""
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} can't be a model's name.",
            hint="Take letters, digits and . _ -, 96 at most, and begin with a letter or digit.",
        )
    there = {path.name.removesuffix(".gguf").casefold() for path in settings.models_dir.iterdir()}
    if name.casefold() in there | {one.casefold() for one in uses.imported(store)} | {"embedded"}:
        raise ModelError(f"There is a model {name!r} already.", hint="Choose another name.")
    return name


def _remember(settings: Settings, path: Path, allow: Collection[Permission]) -> None:
    if allow:
        permissions.allow(settings, str(path), allow)


def _copy(candidate: Candidate, name: str, settings: Settings, progress: Progress) -> Path:
    """Beside the target first, then one rename: the library never sees a half."""
    total, free = candidate.total_bytes, shutil.disk_usage(settings.models_dir).free
    if free < total + _SPARE_BYTES:
        raise ModelError(
            f"{name} takes {size_words(total)}, and {size_words(free)} are free in {settings.models_dir}.",
            hint="Free some space, or import it without a copy.",
        )
    one_file = candidate.found.format == "gguf" and len(candidate.files) == 1
    target = settings.models_dir / (f"{name}.gguf" if one_file else name)
    prefix = f".{name}.partial."
    for left in settings.models_dir.glob(f"{prefix}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=settings.models_dir))
    try:
        done = 0
        for file in candidate.files:
            done = _copy_file(file, folder / file.name, done, total, progress)
        folder.chmod(0o755)
        (folder / candidate.files[0].name if one_file else folder).rename(target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or str(error)
        raise ModelError(
            f"{name} could not be copied: {why}.",
            hint="Nothing of it was kept. Free some space, or import it without a copy." if full else "",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _copy_file(source: Path, target: Path, done: int, total: int, progress: Progress) -> int:
    with source.open("rb") as read, target.open("xb") as write:
        while chunk := read.read(_CHUNK_BYTES):
            write.write(chunk)
            done += len(chunk)
            progress(done, total)
        write.flush()
        os.fsync(write.fileno())  # the rename that follows must not outlive the contents
    return done


# -- copies at work: they go on when nobody looks --------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """A copy at work or ended. `key` is the model's in the library, once it is there."""

    name: str
    total_bytes: int
    done_bytes: int = 0
    state: Literal["running", "finished", "failed", "cancelled"] = "running"
    key: str | None = None
    message: str = ""

    @property
    def share(self) -> float:
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 1.0


class _Cancelled(Exception):
    pass


class Imports:
    """Imports of one workspace. Every method may be called from any thread."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[str, Import] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._cancelled: set[str] = set()

    def start(
        self, path: Path | str, *, name: str = "", copy: bool = False, allow: Collection[Permission] = ()
    ) -> Import:
        """Check it and put it into the library; a copy is made in a thread of its own. Raises ModelError."""
        candidate = check(path, allow=allow)
        name = free_name(name or candidate.name, self._settings, self._store)
        view = Import(name=name, total_bytes=candidate.total_bytes)
        if not copy:
            key = import_model(candidate, self._settings, self._store, name=name, allow=allow)
            return replace(view, state="finished", key=key)
        with self._lock:
            if name in self._known and self._known[name].state == "running":
                raise ModelError(f"{name} is being copied already.", hint="Choose another name.")
            self._known[name] = view
            self._cancelled.discard(name)
            thread = threading.Thread(
                target=self._work, args=(candidate, name, allow), name=f"import {name}", daemon=True
            )
            self._threads[name] = thread
        thread.start()
        return view

    def list(self) -> list[Import]:
        """Copies at work and ended ones that nobody has put away."""
        with self._lock:
            return list(self._known.values())

    def cancel(self, name: str) -> None:
        """Give a copy up; what came of it is removed."""
        with self._lock:
            self._cancelled.add(name)

    def forget(self, name: str) -> None:
        """Put an ended one away."""
        with self._lock:
            if name in self._known and self._known[name].state != "running":
                del self._known[name]

    def close(self) -> None:
        """Give up what is at work. Safe to call twice."""
        with self._lock:
            self._cancelled.update(self._known)
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(30)

    def _work(self, candidate: Candidate, name: str, allow: Collection[Permission]) -> None:
        def progress(done: int, _total: int) -> None:
            with self._lock:
                if name in self._cancelled:
                    raise _Cancelled
                self._known[name] = replace(self._known[name], done_bytes=done)

        try:
            key = import_model(
                candidate, self._settings, self._store, name=name, copy=True, allow=allow, progress=progress
            )
        except _Cancelled:
            self._end(name, state="cancelled")
        except WorkbenchError as error:
            self._end(name, state="failed", message=str(error))
        except Exception as error:
            self._end(name, state="failed", message=f"{type(error).__name__}: {error}")
            raise
        else:
            self._end(name, state="finished", key=key)

    def _end(self, name: str, **values: object) -> None:
        with self._lock:
            self._known[name] = replace(self._known[name], **values)
