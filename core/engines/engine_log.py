"""What an engine and its processes print, in one file of the workspace, and what can be read from it.

vLLM reads a logging configuration when it is imported, in each of its processes,
and so writes to the file; `engine_child` sends there what is printed.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import re
import threading
from collections import deque
from pathlib import Path
from typing import Any

LOG_PATH_VARIABLE = "WORKBENCH_ENGINE_LOG"
_LINES_KEPT = 200
_FILES_KEPT = 10

_STAGES = (
    (re.compile(r"Initializing a V1 LLM engine|Resolved architecture"), "Starting the engine process"),
    (re.compile(r"Starting to load model|Loading (safetensors|pt)"), "Loading weights"),
    (re.compile(r"Loading weights took|Model loading took"), "Weights loaded"),
    (re.compile(r"Compiling a graph|Dynamo bytecode transform"), "Compiling the model"),
    (re.compile(r"(Explicitly set|Available|CPU|GPU) .*KV cache"), "Setting aside the KV cache"),
    (re.compile(r"Warming up|Capturing CUDA graph|init engine \(profile"), "Warming up"),
)  # fmt: skip
_ERROR = re.compile(r"(?:^|\s)((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt)): (.+)$")
_PREFIX = re.compile(r"^(?:\(\S+ pid=\d+\) )*(?:\w+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] )?")


class LogFile(logging.FileHandler):
    """Closed, it stays closed: logging's own opens its file again for a late record, and leaves it open."""

    _ended = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._ended:
            super().emit(record)

    def close(self) -> None:
        self._ended = True
        super().close()


class EngineLog:
    """The log file of this process's engines, one load after the other; old files are pruned."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / f"engine-{os.getpid()}.log"
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._offset = 0
        self._rest = b""

    def begin(self) -> dict[str, str]:
        """Forget the lines of the last load. Returns the environment that makes vLLM write here."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config_path = self.path.with_suffix(".json")
        # also read by processes that do not know this package: everything in it is the standard library's
        config_path.write_text(json.dumps(self._config("logging.FileHandler")), encoding="utf-8")
        self.attach()  # vLLM says some things before it has read it
        self._prune()
        with self._lock:
            self._lines.clear()
            self._offset = self.path.stat().st_size if self.path.exists() else 0
            self._rest = b""
        return {"VLLM_LOGGING_CONFIG_PATH": str(config_path), LOG_PATH_VARIABLE: str(self.path)}

    def attach(self) -> None:
        """Send here what vLLM logs in this process; again after a start, which sets up its own handlers."""
        logging.config.dictConfig(self._config(f"{LogFile.__module__}.{LogFile.__qualname__}"))

    def _config(self, handler: str) -> dict[str, Any]:
        return {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "format": "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
                    "datefmt": "%m-%d %H:%M:%S",
                }
            },
            "handlers": {
                "file": {
                    "class": handler,
                    "filename": str(self.path),
                    "formatter": "line",
                }
            },
            "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
        }

    def poll(self) -> list[str]:
        """Lines that are new since the last call; they join `lines`."""
        with self._lock:
            if not self.path.exists():
                return []
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = self._rest + file.read()
                self._offset = file.tell()
            *complete, self._rest = data.split(b"\n")
            # a progress bar redraws its line with carriage returns: only its last state counts
            texts = [line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2] for line in complete]
            fresh = [text for text in texts if text.strip()]
            self._lines.extend(fresh)
            return fresh

    @property
    def lines(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._lines)

    def _prune(self) -> None:
        logs = sorted(self._folder.glob("engine-*.log"), key=lambda path: path.stat().st_mtime)
        for path in logs[:-_FILES_KEPT]:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def stage_of(line: str, current: str = "") -> str | None:
    """The stage that a log line shows; None for most lines, and for a stage before `current`."""
    names = [stage for _, stage in _STAGES]
    first = names.index(current) if current in names else 0
    return next((stage for pattern, stage in _STAGES[first:] if pattern.search(line)), None)


def cause_in(lines: tuple[str, ...]) -> str | None:
    """The exception a failed load ended with: "SomeError: text", without log prefixes; None if there is none.

    The parent's own "Engine core initialization failed" comes last and says nothing: it is passed over.
    """
    for line in reversed(lines):
        text = _PREFIX.sub("", line)
        found = _ERROR.search(text)
        if found and "initialization failed" not in text and "Failed core proc" not in text:
            return f"{found[1].rpartition('.')[2]}: {found[2].strip()}"
    return None
