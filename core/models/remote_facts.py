"""Facts of a model that still lies on a hub: a few small ranges of its files, and nothing else, are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from core.errors import ModelError
from core.hub import repositories
from core.hub.repositories import RepoFile
from core.models import facts, gguf_facts, headers
from core.models.facts import ModelFacts
from core.settings import Settings
from core.types import Hub

_MOST_HEADERS = 4
_CONFIG_BYTES = 1 << 20


def read(
    hub: Hub, repo: str, revision: str | None, files: Sequence[RepoFile], settings: Settings | None = None
) -> ModelFacts:
    """Of those `files` that would be downloaded. Raises ModelError, HubError.

    A GGUF file tells all by its header; else config.json, and the headers of up to four safetensors
    files. Of more, the files' sizes do: a header is a thousandth of a file.
    """

    def ranges(file: RepoFile) -> headers.Read:
        def read_range(start: int, end: int) -> bytes:
            end = min(end, file.size_bytes)
            if start >= end:
                return b""
            return repositories.read_range(hub, repo, revision, file.path, start, end, settings=settings)

        return read_range

    return of_files(files, ranges, repo)


def of_files(files: Sequence[RepoFile], ranges: Callable[[RepoFile], headers.Read], name: str) -> ModelFacts:
    """The same, with `ranges(file)` to read a file by. Raises ModelError."""
    ggufs = sorted((file for file in files if file.suffix == ".gguf"), key=lambda file: file.path)
    if ggufs:
        known = gguf_facts.from_gguf(headers.read_gguf(ranges(ggufs[0]), ggufs[0].name))
        if len(ggufs) == 1:
            return known
        return known.in_parts(sum(file.size_bytes for file in ggufs))
    config = next((file for file in files if file.path == "config.json"), None)
    if config is None:
        raise ModelError(f"{name} has no config.json.", hint="Its sizes can only be told once it is here.")
    known = facts.from_config(facts.read_config(ranges(config)(0, _CONFIG_BYTES), name))
    weights = _weights(files)
    if not weights:
        return known
    if len(weights) > _MOST_HEADERS:
        return dataclasses.replace(known, weights_bytes=sum(file.size_bytes for file in weights))
    tensors = headers.NO_TENSORS
    for file in weights:
        tensors += headers.read_safetensors(ranges(file), file.name)
    return known.with_tensors(tensors)


def _weights(files: Sequence[RepoFile]) -> list[RepoFile]:
    """Safetensors at the top; a second copy of the same weights (Mistral AI's) is left out."""
    found = [file for file in files if file.suffix == ".safetensors" and file.is_top]
    several = len(found) > 1
    return [
        file for file in found if not (several and PurePosixPath(file.path).name.startswith("consolidated"))
    ]
