"""python -m core.hub.worker: fetch the files of one model, in a process that may be killed at any time.

The request comes on stdin as one line of JSON, its token with it; when stdin closes, the process ends:
its owner is gone. What happens is told on stdout, a line of JSON each:

    {"received": {"model.safetensors": 1048576}, "stage": "Downloading"}
    {"error": "...", "hint": "...", "kind": "disk"}
    {"path": "/.../snapshots/..."}
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, TextIO

from core.errors import HubError
from core.hub.repositories import RepoFile, client
from core.types import Hub

_AT_ONCE = 4
_LOOK_EVERY_S = 0.25
_TRIES_WITHOUT_PROGRESS = 3
_PATIENCE = {
    # what the clients read when they are imported; their own limits end a download that only takes long
    "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(30 * 24 * 3600),
    "MODELSCOPE_DOWNLOAD_MIN_BYTES_PER_SECOND": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to fetch. The token is no part of what is shown of it."""

    hub: Hub
    repo: str
    revision: str | None
    commit: str | None
    files: tuple[RepoFile, ...]

    @classmethod
    def read(cls, request: dict[str, Any]) -> Task:
        files = tuple(RepoFile(**file) for file in request["files"])
        return cls(**{name: request[name] for name in ("hub", "repo", "revision", "commit")}, files=files)


class _Teller:
    """Says what is on disk of each file, as often as it changes."""

    def __init__(self, task: Task, out: TextIO) -> None:
        hub = client(task.hub)
        self._places = {f.path: hub.place(task.repo, task.commit or task.revision, f) for f in task.files}
        self._told: dict[str, int] = {}
        self._out = out
        self._lock = threading.Lock()
        self.stage = "Downloading"
        self.done = threading.Event()

    def received(self) -> dict[str, int]:
        return {path: place.received_bytes() for path, place in self._places.items()}

    def watch(self) -> None:
        while not self.done.wait(_LOOK_EVERY_S):
            self.tell_received()

    def tell_received(self) -> None:
        now = self.received()
        changed = {path: size for path, size in now.items() if self._told.get(path) != size}
        self._told = now
        self.tell(received=changed, stage=self.stage)

    def tell(self, **message: Any) -> None:
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()


def work(task: Task, token: str | None, out: TextIO) -> int:
    """Fetch it all, and tell. Gives the exit code."""
    teller = _Teller(task, out)
    watching = threading.Thread(target=teller.watch, daemon=True)
    watching.start()
    try:
        # the configuration comes last: until it is there nobody takes the folder for a model
        ordered = sorted(task.files, key=lambda file: (file.name == "config.json", -file.size_bytes))
        pool = concurrent.futures.ThreadPoolExecutor(_AT_ONCE)
        _wait_for_all([pool.submit(_fetch, task, file, token, teller) for file in ordered])
        teller.stage = "Finishing"
        path = client(task.hub).finish(task.repo, task.revision, task.commit, task.files, token)
    except HubError as error:
        _stop(teller, watching)
        teller.tell(error=_clean(error.message, token), hint=_clean(error.hint, token), kind=error.kind)
        return 1
    except Exception as error:  # the owner must hear of it, whatever it is: stderr goes nowhere
        _stop(teller, watching)
        said = f"An unexpected error: {type(error).__name__}: {error}"
        teller.tell(error=_clean(said, token), hint="Resume it; if it comes again, report it.", kind="other")
        return 1
    _stop(teller, watching)
    teller.tell(path=str(path))
    return 0


def _stop(teller: _Teller, watching: threading.Thread) -> None:
    teller.done.set()
    watching.join()
    teller.tell_received()


def _wait_for_all(fetching: list[concurrent.futures.Future[None]]) -> None:
    """Raise the first failure at once: the others' bytes are kept, and nobody waits for them."""
    done, _ = concurrent.futures.wait(fetching, return_when=concurrent.futures.FIRST_EXCEPTION)
    failed = [one for one in done if one.exception() is not None]
    for one in fetching:
        one.cancel()
    if failed:
        failed[0].result()


def _fetch(task: Task, file: RepoFile, token: str | None, teller: _Teller) -> None:
    """One file. A connection that breaks is tried again for as long as each try brings something."""
    tries, before = 0, teller.received()[file.path]
    while True:
        try:
            client(task.hub).fetch(task.repo, task.revision, task.commit, file, token)
            return
        except HubError as error:
            now = teller.received()[file.path]
            tries = 0 if now > before else tries + 1
            before = now
            if error.kind != "unreachable" or tries >= _TRIES_WITHOUT_PROGRESS:
                raise
            time.sleep(2.0 ** (tries - 1) if tries else 0.5)


def _clean(text: str, token: str | None) -> str:
    return text.replace(token, "…") if token else text


def _end_with_owner() -> None:
    while sys.stdin.buffer.read(1024):
        continue
    os._exit(3)


def main() -> int:
    os.environ.update({name: value for name, value in _PATIENCE.items() if name not in os.environ})
    # libraries may print what they like: only messages go to the owner
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_owner, daemon=True).start()
    code = work(Task.read(request), request.get("token"), out)
    out.flush()
    os._exit(code)  # downloads that still run when one has failed are not waited for


if __name__ == "__main__":
    main()
