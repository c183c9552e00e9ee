"""What the processes of engines need when they start: an environment, and a `__main__` that is no page."""

from __future__ import annotations

import contextlib
import multiprocessing.spawn
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""The model is in a folder when an engine starts: its processes need no network."""


def faster_libraries() -> dict[str, str]:
    """LD_PRELOAD with Intel's OpenMP and tcmalloc, where they are: a third more speed on a CPU."""
    preload = [os.environ["LD_PRELOAD"]] if os.environ.get("LD_PRELOAD") else []
    preload += [str(path) for path in (_find_openmp(), _find_allocator()) if path]
    return {"LD_PRELOAD": ":".join(preload)} if preload else {}


def _find_openmp() -> Path | None:
    path = Path(sys.prefix) / "lib" / "libiomp5.so"
    return path if path.is_file() else None


def _find_allocator() -> Path | None:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        for path in sorted(Path(folder).glob("libtcmalloc_minimal.so*")):
            return path
    return None


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and put the old values back."""
    old = {name: os.environ.get(name) for name in (*variables, "LD_PRELOAD")}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def main_replaced() -> Iterator[None]:
    """Have multiprocessing run `engine_child` instead of `__main__` in the processes this thread starts.

    `streamlit run` makes the page `__main__`: the engine's processes would run the
    page, start engines of their own and die. Their own workers follow suit.
    """
    original = multiprocessing.spawn.get_preparation_data
    thread = threading.get_ident()

    def with_our_main(name: str) -> dict[str, Any]:
        data = original(name)
        if threading.get_ident() != thread:
            return data
        kept = {key: value for key, value in data.items() if not key.startswith("init_main")}
        return kept | {"init_main_from_name": "core.engines.engine_child"}

    multiprocessing.spawn.get_preparation_data = with_our_main
    try:
        yield
    finally:
        multiprocessing.spawn.get_preparation_data = original
