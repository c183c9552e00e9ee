"""The inside of a worker's process: requests wait, sequences are stepped, what they write is sent."""

from __future__ import annotations

import heapq
import importlib
import itertools
import signal
import traceback
from collections import deque
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from core.engines.worker_text import Key, Part, Work, Writer
from core.errors import RequestRejected, WorkbenchError

if TYPE_CHECKING:
    from core.engines.worker import Backend


def main(connection: Connection, make: str, arguments: dict[str, Any]) -> None:
    """Make the backend, then serve it until the other side closes. What it prints is in the engine's log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    module, _, function = make.partition(":")
    try:
        make_backend = getattr(importlib.import_module(module), function)
        backend = make_backend(report=lambda stage: connection.send(("stage", stage)), **arguments)
    except WorkbenchError as error:
        connection.send(("failed", error.message, error.hint))
    except Exception as error:
        traceback.print_exc()
        connection.send(("failed", _first_line(error), ""))
    else:
        connection.send(("ready", dict(backend.facts)))
        _Desk(connection, backend).serve()


class _Desk:
    def __init__(self, connection: Connection, backend: Backend) -> None:
        self._connection = connection
        self._backend = backend
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, Key, Work]] = []
        self._live: dict[Key, Writer] = {}
        self._questions: deque[tuple[int, str, tuple[Any, ...]]] = deque()

    def serve(self) -> None:
        try:
            while True:
                while self._connection.poll(None if self._idle else 0):
                    if not self._obey(*self._connection.recv()):
                        return
                if self._questions:
                    self._answer(*self._questions.popleft())
                self._admit()
                if self._live:
                    self._step()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the other side is gone

    @property
    def _idle(self) -> bool:
        return not (self._live or self._waiting or self._questions)

    def _obey(self, kind: str, *rest: Any) -> bool:
        """Do what the other side asks for; False when that is the end."""
        if kind == "start":
            number, work, answers = rest
            for index in range(answers):
                own = replace(work, params=_with_own_seed(work.params, index)) if index else work
                entry = (work.priority, next(self._order), (number, index), own)
                heapq.heappush(self._waiting, entry)
        elif kind == "stop":
            self._forget(rest[0])
        elif kind == "ask":
            self._questions.append(rest)
        return kind != "close"

    def _forget(self, number: int) -> None:
        self._waiting = [entry for entry in self._waiting if entry[2][0] != number]
        heapq.heapify(self._waiting)
        for key in [key for key in self._live if key[0] == number]:
            self._drop(key)
        self._questions = deque(entry for entry in self._questions if entry[0] != number)

    def _drop(self, key: Key) -> None:
        del self._live[key]
        self._backend.drop(key)

    def _answer(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            result = getattr(self._backend, method)(*arguments)
        except Exception as error:
            self._refuse(number, error)
        else:
            self._connection.send(("answer", number, result))

    def _admit(self) -> None:
        before = len(self._live)
        while self._waiting and len(self._live) < self._backend.slots:
            _, _, key, work = heapq.heappop(self._waiting)
            try:
                self._backend.add(key, work)
            except Exception as error:
                self._forget(key[0])
                self._refuse(key[0], error)
            else:
                self._live[key] = Writer(work, self._backend)
        if len(self._live) > before:
            self._connection.send(("wrote", [], len(self._live), len(self._waiting)))

    def _step(self) -> None:
        try:
            tokens = self._backend.step()
        except Exception as error:
            for number in dict.fromkeys(key[0] for key in self._live):
                self._forget(number)
                self._refuse(number, error)
            return
        parts: list[tuple[Key, Part]] = []
        for key, token in tokens:
            if isinstance(token, RequestRejected):
                self._forget(key[0])
                self._refuse(key[0], token)
            if key not in self._live:  # or another answer of its request was refused
                continue
            part = self._live[key].take(token)
            parts.append((key, part))
            if part.finish_reason:
                self._drop(key)
        if parts:
            self._connection.send(("wrote", parts, len(self._live), len(self._waiting)))

    def _refuse(self, number: int, error: Exception) -> None:
        if isinstance(error, RequestRejected):
            self._connection.send(("refused", number, error.message, error.hint))
        else:
            traceback.print_exception(error)
            said = f"The engine failed on this request: {_first_line(error)}"
            self._connection.send(("refused", number, said, "The engine's log says more."))


def _with_own_seed(params: Any, index: int) -> dict[str, Any]:
    """The answers to one prompt differ: each has a seed of its own, where there is one."""
    seed = params.get("seed")
    return dict(params) if seed is None else {**params, "seed": seed + index}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
