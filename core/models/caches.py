"""The hubs' own caches on this machine: which models lie there, and in which folders.

Their layouts are documented and stable, and to walk them takes milliseconds; the hubs' own functions,
which take seconds to import, are asked only where something is removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import ModelError
from core.types import Hub

_PREFIX = "models--"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One revision of one model. `revision` is a commit on Hugging Face, a branch or tag on ModelScope.

    `names`: the branches and tags that mean it here.
    """

    hub: Hub
    repo: str
    revision: str | None
    folder: Path
    names: tuple[str, ...] = ()


def huggingface_cache() -> Path:
    """Where huggingface_hub keeps models: HF_HUB_CACHE, HF_HOME or the user's cache folder."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return (Path(home).expanduser() / "hub").resolve()


def modelscope_cache() -> Path:
    """Where modelscope keeps models: MODELSCOPE_CACHE or ~/.cache/modelscope."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser().resolve()


def snapshots() -> Iterator[Snapshot]:
    """Every model of both caches, whole or not."""
    yield from _huggingface_snapshots()
    yield from _modelscope_snapshots()


def find(repo: str, revision: str | None, hub: Hub | None) -> Snapshot | None:
    """The snapshot that a repository and revision mean, None where it isn't here.

    No revision: the main branch as it was last fetched, or the only one there is.
    """
    found = [one for one in snapshots() if one.repo == repo and hub in (None, one.hub)]
    if revision:
        found = [one for one in found if revision == one.revision or revision in one.names]
    main = [one for one in found if {"main", "master"} & {one.revision, *one.names}]
    if main:
        return main[0]
    return found[0] if revision or len(found) == 1 else None


def _huggingface_snapshots() -> Iterator[Snapshot]:
    for home in _folders(huggingface_cache()):
        if not home.name.startswith(_PREFIX):
            continue
        repo = home.name.removeprefix(_PREFIX).replace("--", "/")
        commits: dict[str, list[str]] = {}
        refs = home / "refs"
        for ref in sorted(refs.rglob("*")) if refs.is_dir() else ():
            if ref.is_file():
                commit = ref.read_text(encoding="utf-8", errors="replace").strip()
                commits.setdefault(commit, []).append(ref.relative_to(refs).as_posix())
        for folder in _folders(home / "snapshots"):
            names = tuple(commits.get(folder.name, ()))
            yield Snapshot(hub="huggingface", repo=repo, revision=folder.name, folder=folder, names=names)


def _modelscope_snapshots() -> Iterator[Snapshot]:
    """Two layouts: models/owner--name/snapshots/revision of today, models/owner/name of before 1.38."""
    root = modelscope_cache()
    for models in (root / "models", root / "hub" / "models"):
        for outer in _folders(models):
            if (outer / "snapshots").is_dir():
                repo = outer.name.replace("--", "/", 1)
                for folder in _folders(outer / "snapshots"):
                    yield Snapshot(hub="modelscope", repo=repo, revision=folder.name, folder=folder)
                continue
            for folder in _folders(outer):
                if not folder.is_symlink() and any(folder.iterdir()):
                    repo = f"{outer.name}/{folder.name.replace('___', '.')}"
                    yield Snapshot(hub="modelscope", repo=repo, revision=None, folder=folder)


def _folders(parent: Path) -> list[Path]:
    if not os.access(parent, os.R_OK | os.X_OK):  # not there, or somebody else's
        return []
    return sorted(path for path in parent.glob("*") if path.is_dir() and not path.name.startswith("."))


def bytes_in(folder: Path) -> int:
    """What is in a folder takes on the disk; a file that two names mean counts once, no folder as 0."""
    sizes = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def remove(snapshot: Snapshot, files: tuple[Path, ...] = ()) -> int:
    """Take a snapshot out of its cache, or only these files of it; gives the bytes that this freed.

    What another revision needs, too, stays. Raises ModelError.
    """
    snapshots = snapshot.folder.parent
    kept = (snapshots, snapshots.with_name("blobs")) if snapshots.name == "snapshots" else (snapshot.folder,)
    try:
        before = sum(map(bytes_in, kept))
        if snapshot.hub == "huggingface":
            _remove_from_huggingface(snapshot, frozenset(files))
        else:
            _remove_from_modelscope(snapshot, files)
        return before - sum(map(bytes_in, kept))
    except OSError as error:
        raise ModelError(
            f"{snapshot.repo} could not be deleted: {error.strerror or error}.",
            hint=f"Check that {snapshot.folder} is yours to change.",
        ) from error


def _remove_from_huggingface(snapshot: Snapshot, files: frozenset[Path]) -> None:
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(huggingface_cache())
    for repo in cache.repos:
        if repo.repo_type != "model" or repo.repo_id != snapshot.repo:
            continue
        for revision in repo.revisions:
            if revision.commit_hash != snapshot.revision:
                continue
            chosen = [file for file in revision.files if file.file_path in files]
            if files and len(chosen) < len(revision.files):
                cache.delete_files(*chosen).execute()
                return
            if len(repo.revisions) == 1:  # with what a broken download left in it
                shutil.rmtree(repo.repo_path)
            else:
                cache.delete_revisions(revision.commit_hash).execute()
            return
    # a repository that the hub's own functions find broken: nothing in it is shared with another one
    shutil.rmtree(snapshot.folder.parents[1])


def _remove_from_modelscope(snapshot: Snapshot, files: tuple[Path, ...]) -> None:
    """Its snapshots are whole folders that share nothing."""
    for file in files:
        file.unlink(missing_ok=True)
    if files and any(path.suffix in (".gguf", ".safetensors") for path in snapshot.folder.iterdir()):
        return
    shutil.rmtree(snapshot.folder)
    home = snapshot.folder.parent
    if home.name == "snapshots" and not any(home.iterdir()):
        shutil.rmtree(home.parent)
