"""Tokens of hubs and keys of endpoints, kept once: never in logs, specs, run folders or command lines.

A name is "huggingface", "modelscope" or "endpoint:<base url>". The environment wins over what was saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Literal

from filelock import FileLock

from core.errors import ParameterError, WorkbenchError
from core.settings import Settings

_VARIABLES = {"huggingface": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "modelscope": ("MODELSCOPE_API_TOKEN",)}
_LONGEST = 4096


class Secrets:
    """One file in the workspace that only its owner may read (mode 0600). Safe with several processes."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.home / "secrets.json"

    def __repr__(self) -> str:
        return f"Secrets({str(self._path)!r})"

    def find(self, name: str) -> str | None:
        """The token or key, None where there is none."""
        return _from_environment(name) or self._saved().get(name)

    def where(self, name: str) -> Literal["environment", "saved"] | None:
        if _from_environment(name):
            return "environment"
        return "saved" if name in self._saved() else None

    def save(self, name: str, value: str) -> None:
        """Raises ParameterError where it can't be a token, WorkbenchError where the file can't be written."""
        value = value.strip()
        if not value or len(value) > _LONGEST or not value.isascii() or not value.isprintable():
            raise ParameterError(
                "This is no token or key.",
                hint="It is one line of letters, digits and signs, without blanks around it.",
            )
        self._change(name, value)

    def forget(self, name: str) -> None:
        """Nothing happens where nothing is saved."""
        if name in self._saved():
            self._change(name, None)

    def _saved(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise WorkbenchError(
                f"{self._path} can't be read.", hint="Delete it, and enter your tokens again."
            ) from error
        return found if isinstance(found, dict) else {}

    def _change(self, name: str, value: str | None) -> None:
        try:
            with FileLock(self._path.with_suffix(".lock")):  # two processes may save at once
                kept = {key: saved for key, saved in self._saved().items() if key != name}
                _write(self._path, kept | ({} if value is None else {name: value}))
        except OSError as error:
            raise WorkbenchError(
                f"{self._path} can't be written: {error.strerror}.",
                hint="Check that the workspace folder has room and is yours.",
            ) from error


def _from_environment(name: str) -> str | None:
    for variable in _VARIABLES.get(name, ()):
        if value := os.environ.get(variable, "").strip():
            return value
    return None


def _write(path: Path, values: dict[str, str]) -> None:
    """All or nothing: readers see the old file or the new one. mkstemp makes files of mode 0600."""
    descriptor, partial = tempfile.mkstemp(prefix=".secrets.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(partial).unlink()
        raise
