"""A disk that is full: how it shows, and when there is room again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAID = ("no space left", "file too large", "disk quota exceeded", "disk is full", "full disk", "out of disk")
_ROOM_BYTES = 8 << 20
_LOOK_EVERY_S = 2.0


def is_full(error: BaseException) -> bool:
    """Whether the error, or its cause, says that a file can't grow: DuckDB and SQLite say it in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(phrase in str(error).lower() for phrase in _SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


async def wait_for_room(folder: Path) -> None:
    """Return when some megabytes can really be written in `folder`: free space says nothing of quotas."""
    while True:
        # before the first look too: what is full may be a quota or a file at its largest, which the
        # look does not meet, and to try again at once and for ever would keep the machine busy
        await asyncio.sleep(_LOOK_EVERY_S)
        if await asyncio.to_thread(_has_room, folder):
            return


def _has_room(folder: Path) -> bool:
    probe = folder / f".room-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            for _ in range(_ROOM_BYTES >> 20):
                file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            probe.unlink()
    return True
