"""Whether a folder holds a model that can be loaded, told by its files' names, sizes and headers."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.errors import ModelError
from core.models import facts, headers, licenses

Format = Literal["safetensors", "gguf", "pickle", "adapter", "unknown"]

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NO_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|rng_state|trainer_state)")
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json",
    "sentencepiece.bpe.model", "tokenizer_config.json",
)  # fmt: skip
_GGUF_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NAMED = 3
_AGAIN = "Copy or download it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What lies in a folder, or in a GGUF file. `files`: what belongs to it.

    `problem` says in a sentence why it can't be loaded, `hint` what to do; None where it can. A folder
    is `partial` when files that it names itself are missing or cut.
    """

    format: Format
    files: tuple[Path, ...]
    size_bytes: int
    problem: str | None = None
    hint: str = ""
    partial: bool = False
    facts: facts.ModelFacts | None = None
    license: str | None = None


@dataclass(frozen=True, slots=True)
class _Problem:
    text: str
    hint: str
    partial: bool = False


def look(folder: Path, *, pickle: bool = False) -> Checkpoint:
    """At a folder; `pickle`: somebody allowed pickle weights for it. Raises OSError."""
    files = tuple(sorted(path for path in folder.iterdir() if path.is_file()))
    names = {path.name for path in files}
    if "adapter_config.json" in names and "config.json" not in names:
        size = size_of(files)
        return Checkpoint(format="adapter", files=files, size_bytes=size, license=licenses.of_folder(folder))
    found: Format = "unknown"
    if any(name.endswith(".safetensors") for name in names) or INDEX in names:
        found = "safetensors"
    elif any(_is_pickled_weights(path) for path in files):
        found = "pickle"
    problem = (
        _config_problem(folder, names)
        or _weights_problem(folder, found, names, pickle)
        or _tokenizer_problem(names)
    )
    return Checkpoint(
        format=found,
        files=files,
        size_bytes=size_of(files),
        problem=problem.text if problem else None,
        hint=problem.hint if problem else "",
        partial=problem.partial if problem else False,
        facts=_facts(folder),
        license=licenses.of_folder(folder),
    )


def _facts(path: Path) -> facts.ModelFacts | None:
    """None where its sizes can't be read, as of models that are no plain language models."""
    try:
        return facts.read(path)
    except ModelError:
        return None


def look_gguf(file: Path) -> Checkpoint:
    """At a GGUF file; of a model in several parts, at the first. Raises OSError."""
    files, missing = gguf_parts(file)
    problem = _Problem(f"It has parts that are missing: {_some(missing)}.", _AGAIN, True) if missing else None
    license = None
    for path in () if missing else files:
        try:
            header = headers.read_gguf(headers.local(path), path.name)
        except ModelError as error:
            problem = _Problem(error.message, error.hint or _AGAIN)
            break
        license = license or licenses.short(header.values.get("general.license"))
        if header.tensors.total_bytes > path.stat().st_size:
            problem = _Problem(f"{path.name} is cut: it is shorter than its header says.", _AGAIN, True)
            break
    return Checkpoint(
        format="gguf",
        files=files,
        size_bytes=size_of(files),
        problem=problem.text if problem else None,
        hint=problem.hint if problem else "",
        partial=problem.partial if problem else False,
        facts=None if problem else _facts(file),
        license=license,
    )


def ggufs(folder: Path) -> list[Path]:
    """The GGUF models of a folder: of one in parts the first, no projectors of pictures."""
    found = []
    for path in sorted(folder.glob("*.gguf")):
        part = _GGUF_PART.search(path.name)
        if (part is None or part[1] == "00001") and "mmproj" not in path.name.lower():
            found.append(path)
    return found


def gguf_parts(file: Path) -> tuple[tuple[Path, ...], list[str]]:
    """(The files that are there, the names of those that are not) of a model that may be in parts."""
    part = _GGUF_PART.search(file.name)
    if part is None:
        return (file,), []
    stem, number = file.name[: part.start()], int(part[2])
    paths = [file.with_name(f"{stem}-{place:05d}-of-{part[2]}.gguf") for place in range(1, number + 1)]
    return (
        tuple(path for path in paths if path.is_file()),
        [path.name for path in paths if not path.is_file()],
    )


def size_of(files: tuple[Path, ...]) -> int:
    """Bytes on the disk: a file that two names mean counts once."""
    sizes = {}
    for path in files:
        stat = path.stat()
        sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def _is_pickled_weights(path: Path) -> bool:
    return path.suffix.lower() in PICKLES and not _NO_WEIGHTS.match(path.name)


def _config_problem(folder: Path, names: set[str]) -> _Problem | None:
    if "config.json" not in names:
        hint = "Give the folder that holds config.json and *.safetensors."
        return _Problem("config.json is missing.", hint, partial=True)
    try:
        facts.read_config((folder / "config.json").read_bytes(), folder.name)
    except ModelError as error:
        return _Problem(error.message, error.hint or _AGAIN)
    return None


def _weights_problem(folder: Path, found: Format, names: set[str], pickle: bool) -> _Problem | None:
    if found == "pickle" and not pickle:
        return _Problem(
            "Its weights are pickle files, which can run any code when they are loaded.",
            "Look for a safetensors version, or allow pickle for this model if you trust who made it.",
        )
    if found == "unknown":
        hint = "A model's folder holds *.safetensors; a download may have been broken off."
        return _Problem("It holds no weights.", hint, partial=True)
    return _safetensors_problem(folder, names) if found == "safetensors" else None


def _safetensors_problem(folder: Path, names: set[str]) -> _Problem | None:
    """Missing parts, and files that are shorter than their own headers say."""
    try:
        parts: tuple[str, ...] = tuple(sorted(name for name in names if name.endswith(".safetensors")))
        if INDEX in names:
            parts, _total = headers.read_index((folder / INDEX).read_bytes(), INDEX)
            missing = [name for name in parts if not (folder / name).is_file()]
            if missing:
                text = f"{len(missing)} of {len(parts)} parts of its weights are missing: {_some(missing)}."
                return _Problem(text, _AGAIN, partial=True)
        for name in parts:
            path = folder / name
            tensors = headers.read_safetensors(headers.local(path), name)
            with path.open("rb") as file:
                (header_bytes,) = struct.unpack("<Q", file.read(8))
            lacking = 8 + header_bytes + tensors.total_bytes - path.stat().st_size
            if lacking > 0:
                return _Problem(f"{name} is cut: {lacking:,} bytes are missing.", _AGAIN, partial=True)
    except ModelError as error:
        return _Problem(error.message, error.hint or _AGAIN, partial=True)
    return None


def _tokenizer_problem(names: set[str]) -> _Problem | None:
    if names.isdisjoint(_TOKENIZERS) and not any(name.endswith(".tiktoken") for name in names):
        return _Problem(
            "Its tokenizer is missing: tokenizer.json, or what its kind is made from.",
            "Training may have saved the model alone: copy the tokenizer of its base model beside it.",
        )
    return None


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
