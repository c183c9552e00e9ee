"""What the weights of a model are, read from the headers of its files alone: safetensors and GGUF.

A file is read through a function `read(start, end) -> bytes`, so a few ranges of a file that lies on a
hub do as well as the file itself (`local` makes one for a path). Files are untrusted: sizes and counts
are bounded before anything is read or made of them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError

Read = Callable[[int, int], bytes]
"""The bytes of a file from `start` up to `end`; fewer where the file ends before."""

_MOST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MOST_GGUF_BYTES = 256_000_000
_MOST_TENSORS = 1_000_000
_MOST_VALUES = 100_000
_MOST_ITEMS = 16_000_000
_MOST_TEXT_BYTES = 16_000_000
_KEPT_ITEMS = 4096
_MOST_DIMENSIONS = 16

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Totals over the tensors of one or more files. `numbers` and `size_bytes` are by type, as the file
    names it ("BF16", "Q4_K"): a packed type's numbers are those in the file, not the model's."""

    count: int
    numbers: Mapping[str, int]
    size_bytes: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.size_bytes.values())

    @property
    def total_numbers(self) -> int:
        return sum(self.numbers.values())

    def __add__(self, other: Tensors) -> Tensors:
        return Tensors(
            count=self.count + other.count,
            numbers=_added(self.numbers, other.numbers),
            size_bytes=_added(self.size_bytes, other.size_bytes),
        )


NO_TENSORS = Tensors(count=0, numbers={}, size_bytes={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """A GGUF file's header. `values`: its key-values; of arrays longer than 4,096 only `lengths`."""

    version: int
    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    tensors: Tensors
    names: frozenset[str]


def local(path: Path) -> Read:
    """Read ranges of a file on this machine. Raises OSError."""

    def read(start: int, end: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(max(0, end - start))

    return read


def read_safetensors(read: Read, name: str = "The file") -> Tensors:
    """The tensors of a safetensors file: 8 bytes of length, then JSON. Raises ModelError."""
    beginning = read(0, 8)
    if len(beginning) < 8:
        raise _broken(name, "it ends before its header does")
    length = struct.unpack("<Q", beginning)[0]
    if not 2 <= length <= _MOST_HEADER_BYTES:
        raise _broken(name, f"it names a header of {length:,} bytes")
    text = read(8, 8 + length)
    if len(text) < length:
        raise _broken(name, "it ends before its header does")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(name, "its header is no JSON") from error
    if not isinstance(entries, dict) or len(entries) > _MOST_TENSORS:
        raise _broken(name, "its header lists no tensors, or too many")
    entries.pop("__metadata__", None)
    numbers: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for tensor, entry in entries.items():
        kind, count, size = _entry(entry, name, tensor)
        numbers[kind] = numbers.get(kind, 0) + count
        sizes[kind] = sizes.get(kind, 0) + size
    return Tensors(count=len(entries), numbers=numbers, size_bytes=sizes)


def _entry(entry: Any, name: str, tensor: str) -> tuple[str, int, int]:
    """Type, numbers and bytes of one tensor, checked against each other."""
    kind, shape, offsets = (
        (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if isinstance(entry, dict)
        else (None, None, None)
    )
    lists = isinstance(shape, list) and isinstance(offsets, list) and isinstance(kind, str)
    if (
        lists
        and len(shape) <= _MOST_DIMENSIONS
        and len(offsets) == 2
        and all(type(number) is int and number >= 0 for number in (*shape, *offsets))
    ):
        if kind not in _BITS:
            raise _broken(name, f"the tensor {tensor[:80]!r} is of an unknown type")
        count, size = math.prod(shape), offsets[1] - offsets[0]
        if -(-count * _BITS[kind] // 8) == size:
            return kind, count, size
    raise _broken(name, f"its header describes the tensor {tensor[:80]!r} wrongly")


def read_index(data: bytes, name: str = "The index") -> tuple[tuple[str, ...], int | None]:
    """The files that model.safetensors.index.json names, sorted, and its total size. Raises ModelError."""
    try:
        index = json.loads(data)
        files = sorted(set(index["weight_map"].values()))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise _broken(name, "it is no index of safetensors files") from error
    if not all(isinstance(file, str) and _is_plain_name(file) for file in files):
        raise _broken(name, "it names files outside the model's folder")
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return tuple(files), int(total) if isinstance(total, (int, float)) and 0 < total < 1 << 50 else None


def _is_plain_name(file: str) -> bool:
    return bool(file) and "\\" not in file and all(part not in ("", ".", "..") for part in file.split("/"))


def read_gguf(read: Read, name: str = "The file") -> Gguf:
    """A GGUF header, versions 2 and 3, little endian (a few MB, most of it vocabulary). Raises ModelError."""
    stream = _Stream(read, name)
    if stream.take(4) != b"GGUF":
        raise _broken(name, "it is no GGUF file")
    version = stream.number("<I")
    if version not in (2, 3):
        raise ModelError(f"{name} is a GGUF file of version {version}.", hint="Versions 2 and 3 can be read.")
    tensor_count, value_count = stream.number("<Q"), stream.number("<Q")
    if tensor_count > _MOST_TENSORS or value_count > _MOST_VALUES:
        raise _broken(name, "it names too many tensors or values")
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(value_count):
        key = stream.text()
        kind = stream.number("<I")
        if kind == _ARRAY:
            values[key], lengths[key] = stream.array()
        else:
            values[key] = stream.value(kind)
    return _with_tensors(stream, version, values, lengths, tensor_count)


def _with_tensors(
    stream: _Stream, version: int, values: dict[str, Any], lengths: dict[str, int], count: int
) -> Gguf:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    numbers: dict[str, int] = {}
    sizes: dict[str, int] = {}
    names = set()
    for _ in range(count):
        names.add(stream.text())
        dimensions = stream.number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise _broken(stream.name, "a tensor has too many dimensions")
        tensor_numbers = math.prod(stream.number("<Q") for _ in range(dimensions))
        kind_number = stream.number("<I")
        stream.take(8)  # where its data begin
        try:
            kind = GGMLQuantizationType(kind_number)
        except ValueError as error:
            raise ModelError(
                f"{stream.name} holds tensors of a type ({kind_number}) that is unknown here.",
                hint="It may be newer than this version of the gguf package.",
            ) from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        numbers[kind.name] = numbers.get(kind.name, 0) + tensor_numbers
        sizes[kind.name] = sizes.get(kind.name, 0) + tensor_numbers // block * block_bytes
    tensors = Tensors(count=count, numbers=numbers, size_bytes=sizes)
    return Gguf(version=version, values=values, lengths=lengths, tensors=tensors, names=frozenset(names))


_STRING, _ARRAY = 8, 9
_FORMATS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}


class _Stream:
    """A file from its beginning on, fetched in pieces that double from 256 KiB to 8 MiB."""

    def __init__(self, read: Read, name: str) -> None:
        self.name = name
        self._read = read
        self._buffer = b""
        self._at = 0
        self._fetched = 0
        self._piece = 1 << 18

    def take(self, length: int) -> bytes:
        if length > _MOST_TEXT_BYTES * 2:
            raise _broken(self.name, "its header holds a value that is too large")
        while len(self._buffer) - self._at < length:
            self._fetch(length)
        data = self._buffer[self._at : self._at + length]
        self._at += length
        return data

    def _fetch(self, length: int) -> None:
        wanted = max(self._piece, length)
        if self._fetched + wanted > _MOST_GGUF_BYTES:
            raise _broken(self.name, "its header is too large")
        piece = self._read(self._fetched, self._fetched + wanted)
        if not piece:
            raise _broken(self.name, "it ends before its header does")
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        self._fetched += len(piece)
        self._piece = min(self._piece * 2, 1 << 23)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > _MOST_TEXT_BYTES:
            raise _broken(self.name, "its header holds a text that is too long")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind not in _FORMATS:
            raise _broken(self.name, f"its header holds a value of the unknown type {kind}")
        return self.number(_FORMATS[kind])

    def array(self) -> tuple[list[Any] | None, int]:
        """The items, or None of a long array, and how many there are."""
        kind, count = self.number("<I"), self.number("<Q")
        if count > _MOST_ITEMS:
            raise _broken(self.name, "its header holds a list that is too long")
        if count <= _KEPT_ITEMS:
            return [self.value(kind) for _ in range(count)], count
        if kind == _STRING:
            for _ in range(count):
                self.text()
        elif kind in _FORMATS:
            left = count * struct.calcsize(_FORMATS[kind])
            while left:
                left -= len(self.take(min(left, 1 << 20)))
        else:
            raise _broken(self.name, f"its header holds a list of the unknown type {kind}")
        return None, count


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in (*one, *other)}


def _broken(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} can't be read: {why}.", hint="It may be incomplete or damaged: download or copy it again."
    )
