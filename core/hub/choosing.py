"""Which files of a repository are taken, and which are refused: weights and texts, nothing that runs.

Pickle files and Python code run on the machine that loads them. Where safetensors exist, pickle is
never taken; where there is only pickle, and for Python code, the person who downloads must allow it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from core.errors import HubError
from core.hub.repositories import RepoFile, RepoFiles

Permission = Literal["pickle", "code"]

_TEXTS = frozenset((".json", ".txt", ".model", ".jinja", ".tiktoken"))
_CARD = "README.md"  # its head names the licence
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
_LIKED_GGUF = ("q4_k_m", "q8_0", "q4_0")
_USELESS = ("training_args", "optimizer", "scheduler", "rng_state")


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken, and what is refused, with the reason."""

    taken: tuple[RepoFile, ...]
    refused: tuple[tuple[RepoFile, str], ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.taken)


def ggufs(repo: RepoFiles) -> Mapping[str, tuple[RepoFile, ...]]:
    """GGUF models of a repository: name without parts' numbers -> its files, the smallest first."""
    models: dict[str, list[RepoFile]] = {}
    for file in repo.files:
        if file.suffix == ".gguf" and "mmproj" not in file.name.lower():
            models.setdefault(_SPLIT.sub("", file.path.removesuffix(".gguf")), []).append(file)
    by_size = sorted(models.items(), key=lambda item: sum(file.size_bytes for file in item[1]))
    return {name: tuple(files) for name, files in by_size}


def suggested_gguf(repo: RepoFiles) -> str | None:
    """The quantization that most people take, None where there is no GGUF."""
    names = list(ggufs(repo))
    for liked in _LIKED_GGUF:
        for name in names:
            if liked in name.lower():
                return name
    return names[0] if names else None


def choose(repo: RepoFiles, patterns: Sequence[str] = (), allowed: Collection[Permission] = ()) -> Choice:
    """`patterns` as in a shell ("*Q4_K_M.gguf"); without any, what a model needs to be loaded.

    Where a repository has no safetensors but GGUF files, one of them is taken.
    """
    wanted = _matching(repo, patterns) if patterns else _needed(repo)
    taken, refused = [], []
    for file in wanted:
        reason = _reason(repo, file, allowed)
        if reason:
            refused.append((file, reason))
        else:
            taken.append(file)
    if not patterns:
        seen = {file.path for file in wanted}
        for file in repo.files:  # said, so that nobody wonders where they are
            if file.path not in seen and (file.is_pickle or file.suffix == ".py"):
                reason = _reason(repo, file, allowed)
                refused += [(file, reason)] if reason else []
    return Choice(tuple(taken), tuple(sorted(refused, key=lambda one: one[0].path)))


def demand(repo: RepoFiles, choice: Choice, patterns: Sequence[str] = ()) -> None:
    """Raises HubError unless the choice holds weights to load, or whatever the patterns asked for."""
    if any(file.is_pickle for file, _ in choice.refused) and not _has_weights(choice):
        raise HubError(
            f"{repo.repo} has its weights as pickle only, which can run any code when they are loaded.",
            hint="Look for a safetensors version, or allow pickle for this model if you trust its owner.",
            kind="refused",
        )
    if choice.refused and not choice.taken:
        raise HubError(
            f"All of {repo.repo} that was asked for is refused: {choice.refused[0][1]}",
            hint="Allow it for this model if you trust its owner.",
            kind="refused",
        )
    if not choice.taken:
        names = [file.path for file in repo.files[:3]]
        more = f" and {len(repo.files) - 3:,} more" if len(repo.files) > 3 else ""
        hint = f"It has {', '.join(names)}{more}." if names else "It is empty."
        asked = f" that match {', '.join(patterns)}" if patterns else " that a model is loaded from"
        raise HubError(f"{repo.repo} has no files{asked}.", hint=hint, kind="missing")
    if not patterns and not _has_weights(choice):
        raise HubError(
            f"{repo.repo} has no weights: neither safetensors nor GGUF.",
            hint="Give patterns to take other files.",
            kind="missing",
        )


def _has_weights(choice: Choice) -> bool:
    return any(file.suffix in (".safetensors", ".gguf") or file.is_pickle for file in choice.taken)


def _matching(repo: RepoFiles, patterns: Sequence[str]) -> list[RepoFile]:
    # the hubs' own patterns: a folder's name takes all that is in it
    full = [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in patterns]
    return [file for file in repo.files if any(fnmatch.fnmatchcase(file.path, one) for one in full)]


def _needed(repo: RepoFiles) -> list[RepoFile]:
    top = [file for file in repo.files if file.is_top]
    gguf = suggested_gguf(repo)
    if not repo.has_safetensors and gguf is not None:
        return list(ggufs(repo)[gguf])
    weights = {".safetensors"} if repo.has_safetensors else set()
    # Mistral's repositories have the same weights twice
    twice = any(not file.name.startswith("consolidated") and file.suffix in weights for file in top)
    files = [
        file
        for file in top
        if (file.suffix in weights | _TEXTS | {".py"} or file.name == _CARD)
        and not (twice and file.name.startswith("consolidated") and file.suffix in weights)
    ]
    if not weights:
        files += [file for file in top if _is_pickled_weights(file)]
    files += [file for file in repo.files if file.path.startswith("additional_chat_templates/")]
    return files


def _is_pickled_weights(file: RepoFile) -> bool:
    return file.is_pickle and not file.name.startswith(_USELESS)


def _reason(repo: RepoFiles, file: RepoFile, allowed: Collection[Permission]) -> str | None:
    if file.is_pickle and repo.has_safetensors:
        return "Pickle, which can run code; the safetensors are taken instead."
    if file.is_pickle and "pickle" not in allowed:
        return "Pickle, which can run any code when it is loaded."
    if file.suffix == ".py" and "code" not in allowed:
        return "Python code of the repository, which would run when the model is loaded."
    return None
