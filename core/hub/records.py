"""What is known of a download: what was asked, how far it is, what became of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.errors import HubError
from core.hub.choosing import Permission
from core.hub.files import Place
from core.hub.repositories import RepoFile, client
from core.store import is_alive
from core.types import Hub

DownloadState = Literal["running", "paused", "interrupted", "failed", "finished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadSpec:
    """What to fetch. `patterns` as in a shell; without any, what the model needs to be loaded."""

    hub: Hub
    repo: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    allow: frozenset[Permission] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProgress:
    path: str
    size_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One look at a download. `bytes_per_s` and `eta_s` are None unless it runs and something came.

    `path` is the model's folder, or its GGUF file, once all is there.
    """

    download_id: str
    created_at: dt.datetime
    hub: Hub
    repo: str
    revision: str | None
    commit: str | None
    state: DownloadState
    stage: str
    files: tuple[FileProgress, ...]
    bytes_per_s: float | None = None
    message: str = ""
    hint: str = ""
    kind: str | None = None
    path: Path | None = None

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def received_bytes(self) -> int:
        return sum(file.received_bytes for file in self.files)

    @property
    def share(self) -> float:
        return min(self.received_bytes / self.total_bytes, 1.0) if self.total_bytes else 1.0

    @property
    def eta_s(self) -> float | None:
        left = self.total_bytes - self.received_bytes
        return left / self.bytes_per_s if self.bytes_per_s and left > 0 else None

    def error(self) -> HubError:
        return HubError(self.message, hint=self.hint, kind=self.kind or "other")


def read(row: Mapping[str, Any], received: Mapping[str, int] | None = None) -> Download:
    """A row of the catalogue; `received` where more is known than stands there."""
    state: DownloadState = row["state"]
    if state == "running" and received is None and not is_alive(row["worker_pid"], row["worker_started"]):
        state = "interrupted"  # nobody was left to say so
    received = row["received"] if received is None else received
    files = tuple(
        FileProgress(
            path=file.path,
            size_bytes=file.size_bytes,
            received_bytes=min(received.get(file.path, 0), file.size_bytes),
        )
        for file in files_of(row)
    )
    return Download(
        **{name: row[name] for name in ("download_id", "created_at", "hub", "repo", "revision")},
        **{name: row[name] for name in ("message", "hint", "kind", "stage")},
        commit=row["body"]["commit"],
        state=state,
        files=files,
        bytes_per_s=row["bytes_per_s"] if state == "running" else None,
        path=_model_path(row, files) if state == "finished" else None,
    )


def files_of(row: Mapping[str, Any]) -> tuple[RepoFile, ...]:
    return tuple(RepoFile(**file) for file in row["body"]["files"])


def place_of(row: Mapping[str, Any], file: RepoFile) -> Place:
    return client(row["hub"]).place(row["repo"], row["body"]["commit"] or row["revision"], file)


def _model_path(row: Mapping[str, Any], files: Sequence[FileProgress]) -> Path:
    """The folder, or where only a GGUF model came, its (first) file."""
    folder = Path(row["path"])
    names = sorted(file.path for file in files)
    return folder / names[0] if all(name.endswith(".gguf") for name in names) else folder


def size_words(size_bytes: float) -> str:
    """87 B, 12.1 KiB, 3.4 MiB, 15.2 GiB."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= least * 0.9995:
            amount = size_bytes / least
            return f"{amount:.1f} {unit}" if amount < 99.95 else f"{amount:,.0f} {unit}"
    return f"{size_bytes:.0f} B"
