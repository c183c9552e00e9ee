"""Files on their way here: what is on disk of each, and whether it is what the hub promised."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from core.hub.repositories import RepoFile

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file of a repository lies in its hub's cache: whole in `whole`, on its way in `partial`."""

    whole: Path
    partial: Path

    def received_bytes(self) -> int:
        for path in (self.whole, self.partial):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def remove(self, cache: Path) -> None:
        """And the folders below `cache` that are empty then: they would look like a model."""
        self.whole.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)
        for folder in self.whole.parents:
            if (
                folder == cache
                or not folder.is_relative_to(cache)
                or (folder.is_dir() and any(folder.iterdir()))
            ):
                break
            if folder.is_dir():
                folder.rmdir()


def is_right(path: Path, file: RepoFile) -> bool:
    """Whether the file on disk has the size and the checksum that the hub told."""
    if path.stat().st_size != file.size_bytes:
        return False
    if file.sha256 is not None:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256.lower()
    if file.git_sha1 is not None:  # as git names its objects
        digest = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
        with path.open("rb") as content:
            while block := content.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest() == file.git_sha1.lower()
    return True
