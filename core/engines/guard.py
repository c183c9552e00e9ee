"""Ends the engine's processes however this process ends, `kill -9` included.

vLLM's core and worker processes outlive a killed parent, with all their memory.
`Guard` runs this file as a small process of its own, which reads process ids on
its stdin and ends them when the pipe closes: the kernel closes it, whatever
killed the writer.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator

import psutil

_TERM_WAIT_S = 5.0
_KILL_WAIT_S = 3.0


class Guard:
    """Knows the engine's processes: the multiprocessing children of this process and their children.

    One engine at a time: `begin()` before a load, `adopt()` again and again while
    it loads, `end_all()` to end what is left of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._strangers: set[int | None] = set()
        self._known: dict[int, psutil.Process] = {}
        self._begun = False
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Children that exist now are not the engine's."""
        with self._lock:
            self._strangers = {child.pid for child in multiprocessing.active_children()}
            self._begun = True

    def adopt(self) -> None:
        """Find the engine's new processes and put them under guard."""
        with self._lock:
            if not self._begun:
                return
            for child in multiprocessing.active_children():
                if child.pid is not None and child.pid not in self._strangers:
                    for process in _family(child.pid):
                        if process.pid not in self._known:
                            self._known[process.pid] = process
                            self._tell("add", process.pid)

    @property
    def pids(self) -> tuple[int, ...]:
        """The engine's processes that are alive."""
        with self._lock:
            return tuple(pid for pid, process in self._known.items() if _alive(process))

    def end_all(self, grace_s: float = 0.0) -> None:
        """Wait `grace_s` for the engine's processes to end by themselves, then kill them."""
        self.adopt()
        with self._lock:
            known = list(self._known.values())
        _, alive = psutil.wait_procs(known, timeout=grace_s) if grace_s else ([], known)
        _signal(alive, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=_KILL_WAIT_S)
        with self._lock:
            for process in known:
                self._known.pop(process.pid, None)
                self._tell("del", process.pid)

    def close(self) -> None:
        """End the guard process; it ends the engine's processes first if there are any left."""
        with self._lock:
            process, self._process = self._process, None
            self._begun = False
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):  # somebody ended the guard: nothing to close
            process.stdin.close()
        try:
            process.wait(_TERM_WAIT_S + _KILL_WAIT_S + 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _tell(self, operation: str, pid: int) -> None:
        """Start the guard process with the first process that it has to know: not every engine has one."""
        if self._process is None:
            self._process = subprocess.Popen(
                # -P: this file's folder has modules with the names of packages
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        with contextlib.suppress(BrokenPipeError):  # without its guard, the engine still works
            self._process.stdin.write(f"{operation} {pid}\n")
            self._process.stdin.flush()


def _family(pid: int) -> Iterator[psutil.Process]:
    """The process and its descendants; nothing when it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil checks that the id was not reused
            process.send_signal(number)


def _main() -> None:
    """The guard process: read "add PID" and "del PID" lines; at the end of input, end those processes."""
    known: dict[int, psutil.Process] = {}
    for line in sys.stdin:
        operation, _, pid = line.strip().partition(" ")
        if operation == "del":
            known.pop(int(pid), None)
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            known[int(pid)] = psutil.Process(int(pid))
    family = {process.pid: process for root in known for process in _family(root)} | known
    everyone = list(family.values())
    _signal(known.values(), signal.SIGTERM)
    _, alive = psutil.wait_procs(everyone, timeout=_TERM_WAIT_S)
    _signal(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_KILL_WAIT_S)


if __name__ == "__main__":
    _main()
