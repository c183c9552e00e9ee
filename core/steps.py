"""One step of set-up: what it does, how long it took, and why it failed. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "setup.log"


class SetupError(Exception):
    """Set-up can't go on: what failed, and what to do next."""

    def __init__(self, message: str, hint: str = "", output: str = "") -> None:
        super().__init__(message)
        self.message, self.hint, self.output = message, hint, output


def say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def step(label: str) -> Iterator[None]:
    """Print `label` as the step begins, and its seconds when it ends well."""
    print(f"{label} ... ", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        say("failed")
        raise
    say(f"{time.monotonic() - start:.1f} s")


def call(
    command: Sequence[str], *, failure: str, explain: Callable[[str], tuple[str, str]] | None = None
) -> None:
    """Run `command` in the clone, its output in the log.

    Raises SetupError with the output; `explain` makes (cause, what to do next) of it.
    """
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        begin = log.tell()
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code == 0:
        return
    output = LOG.read_bytes()[begin:].decode(errors="replace").strip()
    if explain:
        cause, hint = explain(output)
    else:
        cause, hint = f"{Path(command[0]).name} ended with exit code {code}.", ""
    if code == -signal.SIGKILL:
        cause, hint = (
            "the system ended it, most likely for want of memory.",
            "Close other programs and try again.",
        )
    raise SetupError(f"{failure}: {cause}", hint, output)
