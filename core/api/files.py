"""/v1/files as OpenAI has it: what was uploaded for batches, and what batches gave back.

The bytes lie in the workspace under names of our own; the catalogue says whose they are. Everybody sees
the files of the own key only.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from core.api import live
from core.api.incoming import Page, in_openai_form, read_page
from core.api.openai_errors import HttpError
from core.api.uploads import Upload
from core.catalogue_schema import api_files as _files
from core.settings import Settings
from core.store import Store

Purpose = Literal["batch", "batch_output"]

_PAGE, _MOST_PAGE = 10_000, 10_000
_LEFT_BEHIND_S = 24 * 3600.0
_ID = re.compile(r"file-[0-9a-z]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiFile:
    """A file as the catalogue knows it."""

    file_id: str
    created_at: dt.datetime
    key_id: str | None
    filename: str
    purpose: Purpose
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.file_id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": int(self.created_at.timestamp()),
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """All files of the API in one workspace. Every method blocks: call it in a thread."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._folder = settings.api_files_dir
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()

    def new_path(self) -> Path:
        """Where a file may be written before it is added. What is never added is swept after a day."""
        return self._folder / f"{secrets.token_hex(12)}.part"

    def add(
        self,
        partial: Path,
        *,
        key_id: str | None,
        filename: str,
        purpose: Purpose,
        file_id: str | None = None,
    ) -> ApiFile:
        """Keep what was written to `partial`, in place of what had that id."""
        file = ApiFile(
            file_id=file_id or f"file-{secrets.token_hex(12)}",
            created_at=dt.datetime.now(dt.UTC),
            key_id=key_id,
            filename=filename,
            purpose=purpose,
            size_bytes=partial.stat().st_size,
        )
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(self.path(file))
        values = {name: getattr(file, name) for name in ApiFile.__dataclass_fields__}
        query = sqlite.insert(_files).values(**values, details={})
        self._store.execute(query.on_conflict_do_update(index_elements=["file_id"], set_=values))
        return file

    def find(self, file_id: str, key_id: str | None) -> ApiFile:
        """Raises HttpError 404, also for a file of another key."""
        row = self._store.first(sa.select(*_columns()).where(_files.c.file_id == file_id, _own(key_id)))
        if row is None:
            raise HttpError(404, f"There is no file {file_id[:80]!r}.", code="file_not_found", param="id")
        return ApiFile(**row)

    def list(self, key_id: str | None, page: Page, purpose: str | None = None) -> tuple[list[ApiFile], bool]:
        """The files of a page, and whether more follow."""
        query = sa.select(*_columns()).where(_own(key_id))
        if purpose is not None:
            query = query.where(_files.c.purpose == purpose)
        after = self.find(page.after, key_id) if page.after else None
        place = (after.created_at, after.file_id) if after else None
        rows = self._store.all(page.of(query, _files.c.created_at, _files.c.file_id, place))
        return [ApiFile(**row) for row in rows[: page.limit]], len(rows) > page.limit

    def delete(self, file_id: str, key_id: str | None) -> None:
        file = self.find(file_id, key_id)
        self._store.execute(sa.delete(_files).where(_files.c.file_id == file.file_id))
        self.path(file).unlink(missing_ok=True)

    def path(self, file: ApiFile) -> Path:
        """Where its bytes lie. Its ending tells `core.tables` what it holds."""
        if not _ID.fullmatch(file.file_id):
            raise ValueError(f"{file.file_id!r} is no id of ours")
        return self._folder / f"{file.file_id}.jsonl"

    def _sweep(self) -> None:
        for entry in self._folder.glob("*.part"):
            if time.time() - entry.stat().st_mtime > _LEFT_BEHIND_S:
                entry.unlink(missing_ok=True)


def _columns() -> list[sa.Column[Any]]:
    return [_files.c[name] for name in ApiFile.__dataclass_fields__]


def _own(key_id: str | None) -> sa.ColumnElement[bool]:
    return _files.c.key_id.is_(None) if key_id is None else _files.c.key_id == key_id


class FileRoutes:
    """/v1/files."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def routes(self) -> list[Route]:
        one = "/v1/files/{file_id}"
        return [
            Route("/v1/files", in_openai_form(self._upload), methods=["POST"]),
            Route("/v1/files", in_openai_form(self._list), methods=["GET"]),
            Route(one, in_openai_form(self._retrieve), methods=["GET"]),
            Route(one, in_openai_form(self._delete), methods=["DELETE"]),
            Route(f"{one}/content", in_openai_form(self._content), methods=["GET"]),
        ]

    async def _upload(self, request: Request) -> Response:
        upload = Upload(self._files.new_path())
        try:
            await upload.receive(request)
            _check(upload)
            file = await asyncio.to_thread(
                self._files.add,
                upload.path,
                key_id=live.current().key_id,
                filename=upload.filename,
                purpose="batch",
            )
        finally:
            upload.path.unlink(missing_ok=True)
        return JSONResponse(file.as_json())

    async def _list(self, request: Request) -> Response:
        page = read_page(request, default=_PAGE, most=_MOST_PAGE)
        purpose = request.query_params.get("purpose")
        files, more = await asyncio.to_thread(self._files.list, live.current().key_id, page, purpose)
        return JSONResponse(page.body([file.as_json() for file in files], more))

    async def _retrieve(self, request: Request) -> Response:
        return JSONResponse((await self._found(request)).as_json())

    async def _delete(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        await asyncio.to_thread(self._files.delete, file_id, live.current().key_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def _content(self, request: Request) -> Response:
        file = await self._found(request)
        path = self._files.path(file)
        if not path.is_file():
            raise HttpError(404, "The file's content is gone.", code="file_not_found", param="id")
        # a browser keeps it, and never shows what a model wrote
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename)

    async def _found(self, request: Request) -> ApiFile:
        return await asyncio.to_thread(
            self._files.find, request.path_params["file_id"], live.current().key_id
        )


def _check(upload: Upload) -> None:
    surplus = next((name for name in upload.fields if name != "purpose"), None)
    if surplus is not None:
        message = f"{surplus[:40]} is not supported: files stay until they are deleted."
        raise HttpError(400, message, param=surplus[:40])
    if upload.fields.get("purpose") != "batch":
        raise HttpError(400, "The purpose of a file is batch here.", param="purpose")
    if not upload.size_bytes:
        raise HttpError(400, "The file is empty.", param="file")
