"""Tables in a folder of the server (`WORKBENCH_TABLES_DIR`), to pick instead of uploading them.

What is picked comes from a browser: names lead to files in the folder and
nowhere else, whatever links lie in it. Names that begin with a dot are private.
"""

from __future__ import annotations

import datetime as dt
import stat
from dataclasses import dataclass
from pathlib import Path

from core import tables
from core.errors import TableError
from core.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFile:
    """A table or a folder of tables. `modified` is UTC; a folder has no size."""

    name: str
    size_bytes: int | None
    modified: dt.datetime
    is_folder: bool


def listing(settings: Settings, subfolder: str = "") -> list[ServerFile]:
    """Folders, then the files that can be read as tables, each by name. Raises TableError."""
    folder = _inside(settings, subfolder)
    if not folder.is_dir():
        raise TableError(f"{_named(subfolder)} is not a folder.", hint="Choose one of the folders listed.")
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise _unreadable(subfolder, error) from error
    root = _root(settings)
    found = [entry for path in paths if (entry := _entry(root, path)) is not None]
    return sorted(found, key=lambda entry: (not entry.is_folder, entry.name.casefold(), entry.name))


def resolve(settings: Settings, relative: str) -> Path:
    """The table `relative` ("2026/sales.csv") as a path to read. Raises TableError."""
    path = _inside(settings, relative)
    # not exists(): to open a named pipe would wait for ever
    if not path.is_file():
        raise TableError(f"{_named(relative)} is not a file.", hint="Choose one of the files listed.")
    if not _is_table(Path(relative).name, path):
        endings = ", ".join(tables.FORMATS_IN)
        raise TableError(f"{_named(relative)} has no ending that can be read.", hint=f"Endings: {endings}.")
    return path


def _root(settings: Settings) -> Path:
    if settings.tables_dir is None:
        raise TableError(
            "This workbench has no folder of tables to pick from.",
            hint="Set WORKBENCH_TABLES_DIR, or upload the file.",
        )
    try:
        return settings.tables_dir.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise TableError(
            f"The folder of tables {settings.tables_dir} can't be read.", hint="Check WORKBENCH_TABLES_DIR."
        ) from error


def _inside(settings: Settings, relative: str) -> Path:
    """Where `relative` really leads, all links followed; that it is there and in the folder is certain."""
    root = _root(settings)
    try:
        path = (root / relative).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # not there, a circle of links, a NUL in the name
        raise _unreadable(relative, error) from error
    if _is_private(relative) or not path.is_relative_to(root) or _is_private(path.relative_to(root)):
        raise TableError(
            f"{_named(relative)} is not in the folder of tables.", hint="Choose one of the files listed."
        )
    return path


def _entry(root: Path, path: Path) -> ServerFile | None:
    """What is shown of it; None for what is not shown, and for what went while we looked."""
    try:
        path.name.encode()  # a browser can't be told a name that is no text
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError, UnicodeEncodeError):
        return None
    if _is_private(path.name) or not target.is_relative_to(root) or _is_private(target.relative_to(root)):
        return None
    is_folder = stat.S_ISDIR(status.st_mode)
    if not is_folder and not (stat.S_ISREG(status.st_mode) and _is_table(path.name, target)):
        return None
    return ServerFile(
        name=path.name,
        size_bytes=None if is_folder else status.st_size,
        modified=dt.datetime.fromtimestamp(status.st_mtime, dt.UTC),
        is_folder=is_folder,
    )


def _is_private(relative: str | Path) -> bool:
    """Also for "..", and for what a spreadsheet program leaves beside a file that it has open."""
    return any(part.startswith((".", "~$")) for part in Path(relative).parts)


def _is_table(name: str, target: Path) -> bool:
    """By both endings of a link: the reader goes by that of the file itself."""
    return all(Path(each).suffix.lower() in tables.FORMATS_IN for each in (name, target.name))


def _unreadable(relative: str, error: Exception) -> TableError:
    cause = getattr(error, "strerror", None) or "it leads nowhere"
    return TableError(f"{_named(relative)} can't be read: {cause}.", hint="Choose one of the files listed.")


def _named(relative: str) -> str:
    return repr(str(relative)) if relative else "The folder of tables"
