"""What a hub has: search it, look at one repository, read a few bytes of a file. Nothing is stored."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from core.errors import HubError
from core.secrets import Secrets
from core.settings import Settings, load_settings
from core.types import Hub

TITLES: Mapping[Hub, str] = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"))

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_CONFIG_BYTES = 1 << 20
_MOST_FILES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """One result of a search. None: the hub doesn't say."""

    hub: Hub
    repo: str
    downloads: int | None = None
    likes: int | None = None
    license: str | None = None
    gated: bool = False
    task: str | None = None
    size_bytes: int | None = None
    updated_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """A file of a repository. `git_sha1` is git's own id, known of small files where `sha256` is not."""

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix.lower()

    @property
    def is_top(self) -> bool:
        """Whether it lies in the repository's first folder, where a model's own files are."""
        return "/" not in self.path

    @property
    def is_pickle(self) -> bool:
        return self.suffix in PICKLES


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFiles:
    """A repository as the hub describes it.

    `revision` is what was asked for (None: the hub's default branch), `commit` what that is now
    (None on ModelScope). `locked` says why its files can't be read with the token in use.
    `own_code`: its configuration names Python code of the repository.
    """

    hub: Hub
    repo: str
    revision: str | None
    commit: str | None
    files: tuple[RepoFile, ...]
    license: str | None = None
    gated: bool = False
    locked: str | None = None
    own_code: bool = False
    downloads: int | None = None

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def has_safetensors(self) -> bool:
        return any(file.is_top and file.suffix == ".safetensors" for file in self.files)

    @property
    def is_adapter(self) -> bool:
        return any(file.path == "adapter_config.json" for file in self.files)


def client(hub: Hub) -> Any:
    """The module that speaks to this hub; its library is imported when it is first asked something."""
    if hub not in get_args(Hub):
        raise HubError(f"There is no hub {hub!r}.", hint=f"Known: {', '.join(get_args(Hub))}.")
    return importlib.import_module(f"core.hub.{hub}")


def search(hub: Hub, text: str, limit: int = 20, *, settings: Settings | None = None) -> list[FoundModel]:
    """Models whose name has `text`, the most downloaded first. Raises HubError."""
    return client(hub).search(" ".join(text.split())[:200], limit, _token(hub, settings))


def look(hub: Hub, repo: str, revision: str | None = None, *, settings: Settings | None = None) -> RepoFiles:
    """Everything about one repository but its contents. `repo` may be its web address. Raises HubError."""
    name, revision = check_names(hub, repo, revision)
    token = _token(hub, settings)
    found: RepoFiles = client(hub).look(name, revision, token)
    files = tuple(sorted((file for file in found.files if _is_safe(file.path)), key=lambda file: file.path))
    if len(files) > _MOST_FILES:
        raise HubError(f"{name} has {len(files):,} files: that is no model.", kind="refused")
    found = replace(found, files=files)
    config = next((file for file in files if file.path == "config.json"), None)
    if config is None or config.size_bytes > _CONFIG_BYTES:
        return found
    try:
        text = client(hub).read_range(
            name, found.commit or revision, config.path, 0, config.size_bytes, token
        )
    except HubError as error:
        if error.kind not in ("gated", "token", "missing"):
            raise
        return replace(found, gated=found.gated or error.kind == "gated", locked=str(error))
    return replace(found, own_code=_names_code(text))


def read_range(
    hub: Hub,
    repo: str,
    revision: str | None,
    file: str,
    start: int,
    end: int,
    *,
    settings: Settings | None = None,
) -> bytes:
    """Bytes [start, end) of a file, fewer at its end. Raises HubError."""
    name, revision = check_names(hub, repo, revision)
    if not _is_safe(file) or not 0 <= start < end:
        raise HubError(f"{file!r} from {start} to {end} is no part of a file.")
    return client(hub).read_range(name, revision, file, start, end, _token(hub, settings))


def check_names(hub: Hub, repo: str, revision: str | None) -> tuple[str, str | None]:
    """The repository's name and the revision, fit to be part of a path. Raises HubError."""
    name = repo.strip()
    if name.startswith(("https://", "http://")):  # as copied from a browser
        parts = [part for part in name.split("://", 1)[1].split("/")[1:] if part]
        name = "/".join(parts[1:3] if parts[:1] == ["models"] else parts[:2])
    parts = name.split("/")
    fits = 1 <= len(parts) <= 2 and all(_NAME.fullmatch(part) and ".." not in part for part in parts)
    if not fits or (hub == "modelscope" and len(parts) != 2):
        raise HubError(
            f"{repo.strip()[:100]!r} is no model's name.", hint="It looks like owner/name.", kind="missing"
        )
    revision = (revision or "").strip() or None
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise HubError(
            f"{revision[:100]!r} is no revision.", hint="Give a branch, tag or commit.", kind="revision"
        )
    return name, revision


def free_bytes(hub: Hub) -> int:
    """Room on the disk of the hub's cache."""
    folder: Path = client(hub).cache_dir()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _token(hub: Hub, settings: Settings | None) -> str | None:
    return Secrets(settings or load_settings()).find(hub)


def _is_safe(path: str) -> bool:
    """Whether a hub's file name may become a path below its folder."""
    parts = path.split("/")
    return len(path) <= 1000 and path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(parts)


def _names_code(config: bytes) -> bool:
    try:
        return bool(json.loads(config).get("auto_map"))
    except (ValueError, AttributeError):
        return False
