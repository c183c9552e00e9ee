"""A file in a multipart form, written to disk as it comes."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from core.api.openai_errors import HttpError

MOST_BYTES = 512 << 20
"""Of one file."""
_WRITE_BYTES = 1 << 20
_MOST_FIELD_BYTES, _MOST_FIELDS = 1000, 10
_FREE_BYTES = 1 << 30
"""What an upload leaves of the disk: runs and the catalogue need some."""
_PATIENCE_S = 30.0
_SHOWN_NAME = 200


class Upload:
    """What the form holds: `fields` by name, and the name and size of its one file, which lies in `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size_bytes = 0
        self._header = self._value = b""
        self._name = ""
        self._field = bytearray()
        self._in_file = False
        self._unwritten: list[bytes] = []

    async def receive(self, request: Request, *, most_bytes: int = MOST_BYTES) -> None:
        """Read the whole request. Raises HttpError; the caller removes the file then."""
        parser = python_multipart.MultipartParser(_boundary(request), self._callbacks())
        self._check_room(request, most_bytes)
        with self.path.open("xb") as file:
            try:
                async for chunk in _chunks(request):
                    parser.write(chunk)
                    if self.size_bytes > most_bytes:
                        raise _too_large(most_bytes)
                    if sum(map(len, self._unwritten)) >= _WRITE_BYTES:
                        await self._write(file)
                parser.finalize()
                await self._write(file)
            except FormParserError as error:
                raise HttpError(400, f"The form can't be read: {error}.") from error
            except OSError as error:
                raise _disk_error(error) from error
        if self.filename is None:
            raise HttpError(400, "The form has no file.", param="file")

    async def _write(self, file: BinaryIO) -> None:
        parts, self._unwritten = self._unwritten, []
        await asyncio.to_thread(file.writelines, parts)

    def _check_room(self, request: Request, most_bytes: int) -> None:
        """Refuse at once what says itself that it is too large."""
        said = request.headers.get("content-length", "")
        asked = int(said) if said.isdigit() else 0
        if asked > most_bytes + _WRITE_BYTES:  # the rest of the form
            raise _too_large(most_bytes)
        if shutil.disk_usage(self.path.parent).free < asked + _FREE_BYTES:
            raise HttpError(507, "The server's disk is nearly full.", code="insufficient_storage")

    # -- what the parser finds ----------------------------------------------------

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
        }

    def _on_part_begin(self) -> None:
        self._name, self._in_file = "", False
        self._field = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _kind, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            self._in_file = b"filename" in options
            if self._in_file:
                self._begin_file(options[b"filename"].decode("utf-8", "replace"))
        self._header = self._value = b""

    def _begin_file(self, filename: str) -> None:
        if self._name != "file":
            raise HttpError(400, "The field with the file is called file.", param=self._name[:40])
        if self.filename is not None:
            raise HttpError(400, "The form has more than one file.", param="file")
        self.filename = _shown_name(filename)

    def _on_headers_finished(self) -> None:
        if not self._name:
            raise HttpError(400, "A part of the form has no name.")
        if not self._in_file and (self._name in self.fields or len(self.fields) >= _MOST_FIELDS):
            raise HttpError(400, "A field of the form is given twice, or there are too many.")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = data[start:end]
        if self._in_file:
            self.size_bytes += len(part)
            self._unwritten.append(part)
            return
        self._field += part
        if len(self._field) > _MOST_FIELD_BYTES:
            raise HttpError(400, f"{self._name[:40]} is too long.", param=self._name[:40])

    def _on_part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._field.decode("utf-8", "replace")


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises HttpError 408 when nothing comes for a while."""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                yield await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise HttpError(408, "The rest of the file did not come.", code="body_too_slow") from error


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HttpError(400, "Send the file as multipart/form-data: curl -F file=@requests.jsonl.")
    return options[b"boundary"]


def _shown_name(name: str) -> str:
    """The client's name for the file, to be shown; it never becomes a path."""
    own = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in own if letter.isprintable())[:_SHOWN_NAME] or "file"


def _too_large(most_bytes: int) -> HttpError:
    most = f"{most_bytes / (1 << 20):,.0f} MiB"
    return HttpError(413, f"The file is larger than {most}. Send it in parts.", code="file_too_large")


def _disk_error(error: OSError) -> HttpError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HttpError(507, "The server's disk is full.", code="insufficient_storage")
    return HttpError(500, f"The file can't be kept: {error.strerror}.")
