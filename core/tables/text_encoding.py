"""Which encoding a text file is in. Files are streamed, never held."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import charset_normalizer

from core.errors import TableError

CHUNK = 1 << 20
SAMPLE = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16 LE, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "If it is a workbook, name it .xlsx."),
    (b"PAR1", "a Parquet file", "Name it .parquet."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (.xls)", "Name it .xls."),
    (b"\x89PNG\r\n", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"GIF8", "a GIF image", ""),
    (b"%PDF-", "a PDF document", ""),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "Unpack it first."),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table as CSV."),
    (b"\x7fELF", "a program", ""),
)
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
_DAMAGED = re.compile("[\udc80-\udcff]")
_UNUSED_IN_TEXT = frozenset(b"\x81\x8d\x8f\x90\x9d\xff")  # no letter in cp1252, or one nobody writes alone


@dataclass(frozen=True, slots=True)
class Encoding:
    """`name` is Python's codec, `bom_bytes` what to skip at the start.

    `damaged`: UTF-8 with some bytes that are not; read it with "surrogateescape".
    """

    name: str
    bom_bytes: int = 0
    damaged: bool = False

    def open(self, path: Path) -> io.TextIOWrapper:
        """The file as text, behind its byte order mark, line ends untouched."""
        stream = path.open("rb", buffering=CHUNK)
        stream.seek(self.bom_bytes)
        errors = "surrogateescape" if self.damaged else "strict"
        return io.TextIOWrapper(stream, encoding=self.name, errors=errors, newline="")


def detect_encoding(path: Path, forced: str | None = None, at_most: int | None = None) -> Encoding:
    """The encoding of the whole file, or of its first `at_most` bytes.

    Raises TableError when the file isn't text, or the `forced` encoding doesn't fit.
    """
    with path.open("rb") as stream:
        head = stream.read(SAMPLE)
    _refuse_known_binary(path, head)
    bom, bom_name = next(((mark, name) for mark, name in _BOMS if head.startswith(mark)), (b"", ""))
    if forced is not None:
        return _forced(path, forced, bom, bom_name, at_most)
    if bom_name and bom_name != "utf-8":
        return _strict(path, Encoding(bom_name, len(bom)), at_most)
    if b"\0" in head:
        wide = _wide_encoding(head)
        if wide:
            return _strict(path, Encoding(wide), at_most)
        _refuse_control_bytes(path, head)
    utf8 = Encoding("utf-8", len(bom))
    if _failure(path, utf8, at_most) is None:
        return utf8
    return _not_utf8(path, utf8, at_most)


def _not_utf8(path: Path, utf8: Encoding, at_most: int | None) -> Encoding:
    _refuse_control_bytes(path, _read_head(path))
    damaged = Encoding("utf-8", utf8.bom_bytes, damaged=True)
    if utf8.bom_bytes or _mostly_utf8(path, at_most):
        return damaged
    for name in (_asian_encoding(path, at_most), "cp1252"):
        if name and _failure(path, Encoding(name), at_most) is None:
            return Encoding(name)
    return Encoding("latin-1")


def _read_head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(SAMPLE)


def _refuse_known_binary(path: Path, head: bytes) -> None:
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            raise TableError(
                f"{path.name} is not a text file: it seems to be {what}.",
                hint=hint or "Give a CSV, TSV, JSONL, Parquet or XLSX file.",
            )


def _refuse_control_bytes(path: Path, head: bytes) -> None:
    control = sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\r\f\x1b")
    if control * 20 > len(head):
        raise TableError(
            f"{path.name} is not a text file: it seems to hold binary data.",
            hint="Give a CSV, TSV, JSONL, Parquet or XLSX file.",
        )


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 without a byte order mark, told by where the NULs are and by how likely the characters are."""
    head = head[: len(head) // 2 * 2]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if (even + odd) * 100 < len(head):
        return None
    if max(even, odd) * 5 > len(head) // 2 and min(even, odd) * 20 < max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    likely = {name: _likely_share(head, name) for name in ("utf-16-le", "utf-16-be")}
    best = max(likely, key=lambda name: likely[name])
    return best if likely[best] > 0.85 and min(likely.values()) < 0.7 else None


def _likely_share(head: bytes, name: str) -> float:
    text = head.decode(name, "replace")
    usual = sum(1 for c in text if c.isprintable() or c in "\t\r\n")
    known = len(text.encode("gb2312", "ignore").decode("gb2312"))
    return min(usual, known) / max(len(text), 1)


def _chunks(path: Path, skip: int, at_most: int | None) -> Iterator[tuple[bytes, bool]]:
    """Pieces of the file and whether each is the file's last."""
    left = at_most
    with path.open("rb") as stream:
        stream.seek(skip)
        while left is None or left > 0:
            chunk = stream.read(CHUNK)
            yield chunk, not chunk
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)


def _failure(path: Path, encoding: Encoding, at_most: int | None = None) -> tuple[int, bytes] | None:
    """Offset and value of the first byte that doesn't fit, or None."""
    decoder = codecs.getincrementaldecoder(encoding.name)("strict")
    end = encoding.bom_bytes
    for chunk, last in _chunks(path, encoding.bom_bytes, at_most):
        end += len(chunk)
        try:
            decoder.decode(chunk, last)
        except UnicodeDecodeError as error:
            data = bytes(error.object)
            return end - len(data) + error.start, data[error.start : max(error.end, error.start + 1)]
    return None


def _line_at(path: Path, encoding: Encoding, offset: int) -> int:
    decoder: Any = codecs.getincrementaldecoder(encoding.name)("replace")
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    line, at = 1, encoding.bom_bytes
    for chunk, last in _chunks(path, encoding.bom_bytes, None):
        line += newlines.decode(chunk[: max(offset - at, 0)], last).count("\n")
        at += len(chunk)
        if at >= offset:
            break
    return line


def _strict(path: Path, encoding: Encoding, at_most: int | None) -> Encoding:
    failure = _failure(path, encoding, at_most)
    if failure is None:
        return encoding
    offset, value = failure
    line = _line_at(path, encoding, offset)
    raise TableError(
        f"{path.name} is not {encoding.name}: line {line}, byte {offset:,} (0x{value[:4].hex()}).",
        hint="Choose another encoding, or let it be detected.",
        line=line,
    )


def _forced(path: Path, name: str, bom: bytes, bom_name: str, at_most: int | None) -> Encoding:
    try:
        codec = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
    except LookupError as error:
        raise TableError(
            f"There is no encoding {name!r}.", hint="Try utf-8, gb18030, utf-16, cp1252 or latin-1."
        ) from error
    if not getattr(codec, "_is_text_encoding", True) or codec.name in ("idna", "punycode"):
        raise TableError(
            f"{name!r} is not an encoding of text.", hint="Try utf-8, gb18030, utf-16, cp1252 or latin-1."
        )
    chosen = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(codec.name, codec.name)
    if codec.name in ("utf-16", "utf-32") and bom_name.startswith(codec.name):
        chosen = bom_name
    return _strict(path, Encoding(chosen, len(bom) if chosen == bom_name else 0), at_most)


def _mostly_utf8(path: Path, at_most: int | None) -> bool:
    """True when far more bytes are good UTF-8 beyond ASCII than damaged, or the damage is no text at all."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    good = bad = 0
    bad_bytes: set[int] = set()
    for chunk, last in _chunks(path, 0, at_most):
        beyond = "".join(_NON_ASCII.findall(decoder.decode(chunk, last)))
        broken = _DAMAGED.findall(beyond)
        bad += len(broken)
        good += len(beyond) - len(broken)
        bad_bytes.update(ord(character) - 0xDC00 for character in set(broken))
    return good >= 3 * bad or bad_bytes <= _UNUSED_IN_TEXT


def _asian_encoding(path: Path, at_most: int | None) -> str | None:
    """GB18030 when its characters are those people write; else what charset-normalizer is sure of."""
    beyond, data = "", b""
    decoder = codecs.getincrementaldecoder("gb18030")("replace")
    for chunk, last in _chunks(path, 0, at_most):
        beyond += "".join(_NON_ASCII.findall(decoder.decode(chunk, last)))
        data = data or chunk
        if len(beyond) > 200_000:
            break
    leads = list(beyond.encode("gb2312", "ignore")[::2])
    common = sum(1 for lead in leads if lead <= 0xA3 or 0xB0 <= lead <= 0xD7)
    words = [lead for lead in leads if lead >= 0xB0]
    # Korean (EUC-KR) uses 0xB0-0xC8 alone; Chinese syllables from S to Z lie above.
    korean = len(words) >= 20 and max(words) <= 0xC8
    if beyond and common >= 0.7 * len(beyond):
        return "cp949" if korean else "gb18030"
    if sum(1 for byte in data if byte >= 0x80) < 40:
        return None
    best = charset_normalizer.from_bytes(
        data[:SAMPLE], cp_isolation=["big5", "cp932", "euc_jp", "cp949", "cp1252"]
    ).best()
    return best.encoding if best and best.encoding != "cp1252" else None
