"""The licence that a model's own files name, as short as its makers put it: "apache-2.0"."""

from __future__ import annotations

import json
import re
from pathlib import Path

_MOST_BYTES = 65_536
_MOST_CHARACTERS = 60
_LINE = re.compile(r"^(license|license_name):[ \t]*[\"']?([^\"'\n#]+)", re.MULTILINE)


def of_folder(folder: Path) -> str | None:
    """From the head of README.md, as the hubs read it, or from origin.json of a converted model."""
    readme = folder / "README.md"
    if readme.is_file():
        with readme.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "replace")
        if text.startswith("---"):
            head = text[3:].partition("\n---")[0]
            named = {name: value.strip() for name, value in _LINE.findall(head)}
            own = named.get("license_name") if named.get("license") == "other" else None
            return short(own or named.get("license"))
    origin = folder / "origin.json"
    if origin.is_file() and origin.stat().st_size <= _MOST_BYTES:
        try:
            said = json.loads(origin.read_bytes())
        except ValueError:
            return None
        return short(said.get("license")) if isinstance(said, dict) else None
    return None


def short(value: object) -> str | None:
    """What a file says, on one line and not endless; None where it says nothing."""
    return " ".join(str(value).split())[:_MOST_CHARACTERS] or None if value else None
