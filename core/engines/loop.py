"""One asyncio loop on one thread, for everything that talks to an engine.

An asynchronous engine belongs to the loop it was first used on, and page scripts
have no lasting loop of their own: they reach this one from their threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_CANCEL_GRACE_S = 10.0


class LoopThread:
    """Runs from construction to `stop()`. The thread is a daemon: it never holds the interpreter up."""

    def __init__(self, name: str = "engine-loop") -> None:
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        # Threads and processes started from here inherit the mask, so that Ctrl-C in a
        # terminal reaches this process alone, which then ends its engine in good order.
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    @property
    def running(self) -> bool:
        return self._thread.is_alive() and not self._loop.is_closed()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start `coroutine` on the loop. Cancelling the future cancels its task."""
        if not self.running:
            coroutine.close()
            raise RuntimeError("The engine's loop has ended.")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the loop and wait for its result.

        When the wait is interrupted (Ctrl-C), the coroutine is cancelled and gets
        some seconds to end in good order before the interruption goes on.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("run() called on the engine's loop: it would wait for itself. Use await.")
        ended = threading.Event()

        async def body() -> T:
            try:
                return await coroutine
            finally:
                ended.set()

        future = self.spawn(body())
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                ended.wait(_CANCEL_GRACE_S)
            raise

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run a blocking `function` on a daemon thread of its own and await its result.

        Not `asyncio.to_thread`: the interpreter joins that pool's threads before it
        runs any exit handler, so a load under way would hold up Ctrl-C for a minute.
        """
        result: concurrent.futures.Future[T] = concurrent.futures.Future()

        def main() -> None:
            try:
                value = function()
            except BaseException as error:
                if not result.cancelled():
                    result.set_exception(error)
            else:
                if not result.cancelled():
                    result.set_result(value)

        threading.Thread(target=main, name=f"{self._thread.name}-work", daemon=True).start()
        return await asyncio.shield(asyncio.wrap_future(result))

    def stop(self, timeout_s: float = 5.0) -> None:
        """Cancel what still runs, then end the loop and its thread. Safe to call twice."""
        if not self.running:
            return

        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=timeout_s) if tasks else None
            await self._loop.shutdown_asyncgens()

        concurrent.futures.wait([self.spawn(cancel_all())], timeout=timeout_s + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is, as in vLLM's own server: every token of every stream passes through here."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
