"""Every exception this package raises on purpose.

    WorkbenchError
    ├── SettingsError          an environment variable or setting that makes no sense
    ├── ModelError             a model that isn't there or can't be prepared
    │   └── HubError           a model hub refused or broke off; `kind` says how
    ├── TableError             a file that can't be read or written, or clashing columns
    ├── TemplateError          a prompt template that can't be compiled or rendered
    │   └── UnknownColumn
    ├── ParameterError         a sampling parameter that is unknown or out of range
    ├── EngineError
    │   ├── EngineUnavailable  this engine can't run here (a CUDA build without a GPU)
    │   ├── EngineLoadError    the load failed; `log` holds the engine's last lines
    │   ├── EngineNotReady     nothing is loaded yet
    │   ├── EngineDied         the engine's process ended under its requests
    │   └── RequestRejected    the engine refused one request (too long, bad parameter)
    ├── RunError
    │   ├── RunNotFound
    │   └── RunBusy            another process works on this run
    ├── BenchError             a benchmark that can't run, isn't there, or a file that is none
    └── ApiError               the API can't start, or has no such key, file or batch

The message says what failed and on what, in one line; `hint` says what to do next.
"""

from __future__ import annotations

from typing import Literal


class WorkbenchError(Exception):
    """Base of all errors that a user may see."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SettingsError(WorkbenchError):
    pass


class ModelError(WorkbenchError):
    pass


HubProblem = Literal[
    "token",  # the hub refuses the token
    "gated",  # its owner must let you in
    "missing",  # no such repository or file, or a private one
    "revision",
    "unreachable",  # no connection, a connection that broke, a hub in trouble
    "disk",  # no room, before or during
    "checksum",  # what came is not what the hub promised
    "refused",  # pickle or nothing to take: see `core.hub.choosing`
    "other",
]


class HubError(ModelError):
    def __init__(self, message: str, *, hint: str = "", kind: HubProblem = "other") -> None:
        super().__init__(message, hint=hint)
        self.kind: HubProblem = kind


class TableError(WorkbenchError):
    """`line` is the 1-based line of the file where it went wrong, if known."""

    def __init__(self, message: str, *, hint: str = "", line: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line


class TemplateError(WorkbenchError):
    pass


class UnknownColumn(TemplateError):
    pass


class ParameterError(WorkbenchError):
    pass


class EngineError(WorkbenchError):
    pass


class EngineUnavailable(EngineError):
    pass


class EngineLoadError(EngineError):
    """`log` holds the engine's own last lines, oldest first."""

    def __init__(self, message: str, *, hint: str = "", log: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.log = log


class EngineNotReady(EngineError):
    pass


class EngineDied(EngineError):
    pass


class RequestRejected(EngineError):
    pass


class RunError(WorkbenchError):
    pass


class RunNotFound(RunError):
    pass


class RunBusy(RunError):
    pass


class BenchError(WorkbenchError):
    pass


class ApiError(WorkbenchError):
    pass
