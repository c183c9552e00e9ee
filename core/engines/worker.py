"""An engine whose library is synchronous, in a process of its own: transformers, llama.cpp.

`Worker` is this side of it: it starts the process, hands it requests and passes on what is written, until
the process ends. `Backend` is what a library has to be made into; it lives in the process, on one thread,
and does no more than take sequences and make one step of all of them. The rest is done here, once:
requests wait by priority while all slots are taken, tokens become text, stop texts and limits end an answer,
several answers to one prompt are several sequences, and a request that is no longer wanted is dropped before
the next step. `core.engines.worker_engine` makes an Engine of a Worker.

    worker = Worker.start("core.engines.hf_backend:make", {...}, report=..., log=..., guard=..., run=...)
    worker.facts                                    what the backend says of itself
    async for parts in worker.generate(work): ...   [(number of the answer, Part), ...], step by step
    await worker.ask("score", prompt_ids, answers)  any method of the backend, between two steps
    await worker.close()
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from core.engines import worker_process
from core.engines.base import Report
from core.engines.children import OFFLINE, environment, faster_libraries, main_replaced
from core.engines.engine_log import LOG_PATH_VARIABLE, EngineLog, cause_in
from core.engines.guard import Guard
from core.engines.worker_text import Key, Part, Token, Work
from core.errors import EngineDied, EngineLoadError, RequestRejected
from core.types import EngineStats

_CLOSE_S = 5.0


class Backend(Protocol):
    """A library with a model, in the worker's process. Made by `make(*, report, **arguments) -> Backend`.

    `make` may raise any WorkbenchError, or what the library raises: the load fails of it.
    All methods are called on one thread, and never while another is at work.
    """

    facts: Mapping[str, Any]
    """What this side's engine needs for its EngineInfo; must be picklable."""
    slots: int
    """How many sequences it can hold at once; the rest wait."""
    context_tokens: int
    """Prompt and answer of a sequence together."""
    end_ids: frozenset[int]
    """Tokens that end an answer, unless `ignore_eos`."""

    def add(self, key: Key, work: Work) -> None:
        """Take a sequence up; its prompt is read in the next steps. Raises RequestRejected."""
        ...

    def drop(self, key: Key) -> None:
        """Forget a sequence: it has ended, or nobody wants it any more."""
        ...

    def step(self) -> Sequence[tuple[Key, Token | RequestRejected]]:
        """The next token of each sequence that has one; the prompts of some may still be read.

        In place of a token, why a sequence can't go on: its request is refused then.

        It samples by `work.params`, and gives log-probabilities where `work.wants_logprobs`. End tokens are
        tokens like others, but not before `min_tokens`. An exception ends all sequences that are held.
        """
        ...

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """Text of tokens, U+FFFD where a character is incomplete; with `special` control tokens as well."""
        ...

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token by itself, for lists of probabilities."""
        ...


class Worker:
    """The process, seen from the loop on which `generate`, `ask` and `close` are called."""

    def __init__(
        self,
        process: Any,
        connection: Connection,
        facts: Mapping[str, Any],
        log: EngineLog,
        guard: Guard,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.facts = facts
        self._process = process
        self._connection = connection
        self._log = log
        self._guard = guard
        self._loop = loop
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Queue[Any]] = {}
        self._asked: dict[int, concurrent.futures.Future[Any]] = {}
        self._lock = threading.Lock()
        self._ended: EngineDied | None = None
        self._closing = False
        self._load = (0, 0)
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for body, name in ((self._write, "worker-writer"), (self._read, "worker-reader")):
            threading.Thread(target=body, name=name, daemon=True).start()

    @classmethod
    def start(
        cls,
        make: str,
        arguments: Mapping[str, Any],
        *,
        report: Report,
        log: EngineLog,
        guard: Guard,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
    ) -> Worker:
        """Start the process and wait for its backend, which `make` ("module:function") makes of `arguments`.

        Blocks. The caller has called `log.begin()` for its environment. Raises EngineLoadError.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker_process.main, args=(theirs, make, dict(arguments)), name="engine", daemon=True
        )
        with (
            environment({**OFFLINE, **faster_libraries(), LOG_PATH_VARIABLE: os.fspath(log.path)}),
            main_replaced(),
        ):
            process.start()
        theirs.close()
        guard.adopt()
        try:
            facts = _wait_ready(ours, report, log)
        except BaseException:
            ours.close()
            process.kill()
            process.join()
            raise
        guard.adopt()
        return cls(process, ours, facts, log, guard, run(_running_loop()))

    async def generate(self, work: Work, *, answers: int = 1) -> AsyncIterator[list[tuple[int, Part]]]:
        """What is written, as it comes: (which of the `answers`, Part). Closing it drops the request.

        Raises RequestRejected and EngineDied.
        """
        number, inbox = next(self._numbers), asyncio.Queue()
        open_answers, begun = set(range(answers)), False
        self._raise_if_ended()
        self._answers[number] = inbox
        self._outbox.put(("start", number, work, answers))
        try:
            while open_answers:
                parts = await inbox.get()
                if isinstance(parts, Exception):
                    open_answers.clear()
                    raise parts
                if not begun:
                    self._prompt_tokens += len(work.prompt_ids)
                    begun = True
                self._output_tokens += len(parts)
                open_answers -= {index for index, part in parts if part.finish_reason}
                yield parts
        finally:
            self._answers.pop(number, None)
            if open_answers:
                self._outbox.put(("stop", number))

    async def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the backend returns, called between two steps. It can be cancelled before that.

        Raises RequestRejected, also for what the library raises, and EngineDied.
        """
        number, future = self._send_question(method, arguments)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._outbox.put(("stop", number))
            raise

    def _send_question(
        self, method: str, arguments: tuple[Any, ...]
    ) -> tuple[int, concurrent.futures.Future[Any]]:
        number: int = next(self._numbers)
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            self._raise_if_ended()
            self._asked[number] = future
        self._outbox.put(("ask", number, method, arguments))
        return number, future

    def stats(self) -> EngineStats:
        running, waiting = self._load if self._answers else (0, 0)
        return EngineStats(
            running=running,
            waiting=waiting,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )

    def check(self) -> None:
        """Raise EngineDied when the process has ended by itself."""
        if self._ended is not None and not self._closing:
            raise self._ended

    async def close(self) -> None:
        """End the process; what is pending ends with EngineDied. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        self._outbox.put(("close",))
        await asyncio.to_thread(self._process.join, _CLOSE_S)
        if self._process.exitcode is None:  # in a step that takes long
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        await asyncio.to_thread(self._guard.end_all)
        self._outbox.put(None)
        self._end(EngineDied("The engine was unloaded.", hint="Load it again."))

    # Threads of this side: one writes, so that a full pipe holds nobody up, one reads

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:  # the process is gone: the reader sees it too
                return

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, *rest = self._connection.recv()
                if kind == "wrote":
                    self._on_loop(self._deliver, *rest)
                else:
                    self._settle(kind, *rest)
        self._process.join(_CLOSE_S)
        self._connection.close()
        if not self._closing:
            self._log.poll()
            cause = cause_in(self._log.lines)
            died = EngineDied(f"The engine's process ended{f': {cause}' if cause else '.'}")
            self._on_loop(self._end, died)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, parts: list[tuple[Key, Part]], running: int, waiting: int) -> None:
        self._load = (running, waiting)
        by_number: dict[int, list[tuple[int, Part]]] = {}
        for (number, index), part in parts:
            by_number.setdefault(number, []).append((index, part))
        for number, own in by_number.items():
            if number in self._answers:
                self._answers[number].put_nowait(own)

    def _settle(self, kind: str, number: int, *rest: Any) -> None:
        """What a question was answered with, or a request refused for."""
        with self._lock:
            future = self._asked.pop(number, None)
        error = RequestRejected(rest[0], hint=rest[1]) if kind == "refused" else None
        if future is None:
            if error is not None:
                self._on_loop(self._refuse, number, error)
        elif future.set_running_or_notify_cancel():
            future.set_exception(error) if error is not None else future.set_result(rest[0])

    def _refuse(self, number: int, error: RequestRejected) -> None:
        if number in self._answers:
            self._answers[number].put_nowait(error)

    def _end(self, died: EngineDied) -> None:
        """All that is pending ends with an error of its own: one raised twice would gather tracebacks."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = died
            asked, self._asked = list(self._asked.values()), {}
        for inbox in self._answers.values():
            inbox.put_nowait(EngineDied(died.message, hint=died.hint))
        for future in asked:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineDied(died.message, hint=died.hint))

    def _raise_if_ended(self) -> None:
        if self._closing:
            raise EngineDied("The engine was unloaded.", hint="Load it again.")
        if self._ended is not None:
            raise EngineDied(self._ended.message, hint=self._ended.hint)


def _wait_ready(connection: Connection, report: Report, log: EngineLog) -> Mapping[str, Any]:
    """The backend's facts. Raises EngineLoadError with the log."""
    while True:
        try:
            kind, *rest = connection.recv()
        except (EOFError, OSError) as error:
            log.poll()
            cause = cause_in(log.lines)
            raise EngineLoadError(
                f"The engine's process ended while it loaded{f': {cause}' if cause else '.'}",
                hint="The log below says more.",
                log=log.lines,
            ) from error
        if kind == "ready":
            return rest[0]
        if kind == "failed":
            time.sleep(0.05)  # its last lines reach the log after its last message
            log.poll()
            raise EngineLoadError(rest[0], hint=rest[1] or "The log below says more.", log=log.lines)
        report(rest[0])


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
