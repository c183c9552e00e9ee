"""Downloads: several at once, each in a process of its own; paused, resumed, and found again after a kill.

What is asked and how far it is stands in the catalogue, the bytes lie in the hub's own cache. To
pause is to end the process: a later one goes on from the byte that is there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from core.catalogue_schema import downloads as _table
from core.errors import HubError, ModelError, WorkbenchError
from core.hub import choosing, permissions, repositories
from core.hub.records import Download, DownloadSpec, files_of, place_of, read, size_words
from core.hub.repositories import RepoFile, RepoFiles, client
from core.secrets import Secrets
from core.settings import Settings
from core.store import Store, is_alive, new_id
from core.types import Hub

_SAVE_EVERY_S = 1.0
_RATE_OVER_S = 5.0
_SPARE_BYTES = 64 << 20  # a disk is never filled to its last byte
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class _Running:
    """A worker of this process, and what it has said; `ended` is what became of it, once it has."""

    process: subprocess.Popen[str]
    received: dict[str, int]
    stage: str = "Starting"
    seen: deque[tuple[float, int]] = field(default_factory=deque)
    reader: threading.Thread | None = None
    ended: dict[str, Any] = field(default_factory=dict)

    def bytes_per_s(self) -> float | None:
        """Over the last seconds; None before there were two looks."""
        if len(self.seen) < 2:
            return None
        (start, before), (end, now) = self.seen[0], self.seen[-1]
        return max(now - before, 0) / (end - start) if end > start else None


class Downloads:
    """The downloads of a workspace. Safe from any thread, and beside other processes that have one."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._lock = threading.RLock()
        self._running: dict[str, _Running] = {}

    def start(self, spec: DownloadSpec, repo: RepoFiles | None = None) -> str:
        """Begin, and give the download's id. `repo`: what `repositories.look` gave, if that was done.

        The same files that were begun before go on. Raises HubError: refused, no room, not reachable.
        """
        if repo is None:
            repo = repositories.look(spec.hub, spec.repo, spec.revision, settings=self._settings)
        allow = spec.allow | permissions.allowed(self._settings, repo.repo, spec.hub)
        choice = choosing.choose(repo, spec.patterns, allow)
        choosing.demand(repo, choice, spec.patterns)
        if repo.locked is not None and repo.gated:
            raise HubError(repo.locked, kind="gated")
        if spec.allow:
            permissions.allow(self._settings, repo.repo, spec.allow, spec.hub)
        with self._lock:
            for begun in self._same(repo, choice.taken):
                if begun["state"] != "finished":
                    self.resume(begun["download_id"])
                    return begun["download_id"]
            self._check_room(repo.hub, repo.repo, repo.commit or repo.revision, choice.taken)
            return self._add(repo, choice.taken)

    def pause(self, download_id: str) -> None:
        """End its process; what came is kept. Nothing happens where it doesn't run."""
        row = self._row(download_id)
        if row["state"] == "running":
            try:
                self._update(download_id, state="paused", bytes_per_s=None)
            finally:  # also where a full disk keeps no word of it: it reads as interrupted then
                self._end_worker(download_id, row)

    def resume(self, download_id: str) -> None:
        """Go on from the bytes that are there. Nothing happens where it runs or has finished.

        Raises HubError where there is no room.
        """
        with self._lock:
            download = self.view(download_id)
            if download.state in ("running", "finished"):
                return
            row = self._row(download_id)
            files = files_of(row)
            self._check_room(row["hub"], row["repo"], row["body"]["commit"] or row["revision"], files)
            self._spawn(download_id, row)

    def cancel(self, download_id: str) -> None:
        """End it, and remove what it brought; what was there before it stays."""
        with self._lock:
            self.pause(download_id)
            row = self._row(download_id)
            if row["state"] != "finished":
                hub = client(row["hub"])
                for file in files_of(row):
                    place = place_of(row, file)
                    if file.path not in row["body"]["before"] and not hub.is_linked(row["repo"], place):
                        place.remove(hub.cache_dir())
            self._store.execute(sa.delete(_table).where(_table.c.download_id == download_id))

    def forget(self, download_id: str) -> None:
        """Take a finished one from the list; its files stay. One that has not finished is cancelled."""
        self.cancel(download_id)

    def list(self) -> list[Download]:
        """The newest first."""
        running = dict(self._running)
        query = sa.select(_table).order_by(_table.c.created_at.desc(), _table.c.download_id.desc())
        return [_seen(row, running.get(row["download_id"])) for row in self._store.all(query)]

    def view(self, download_id: str) -> Download:
        running = self._running.get(download_id)
        return _seen(self._row(download_id), running)

    def wait(self, download_id: str, report: Callable[[Download], None], every_s: float = 0.5) -> Download:
        """Report until it has ended in some way, and give how."""
        while True:
            download = self.view(download_id)
            report(download)
            if download.state != "running":
                return download
            running = self._running.get(download_id)
            if running is not None and running.reader is not None:
                running.reader.join(every_s)
            else:
                time.sleep(every_s)

    def close(self) -> None:
        """End this process's workers; what they had reads as interrupted, and can be resumed."""
        with self._lock:
            running = dict(self._running)
        for one in running.values():
            one.process.kill()
        for one in running.values():
            if one.reader is not None:
                one.reader.join(10)

    # -- starting ------------------------------------------------------------

    def _same(self, repo: RepoFiles, files: Sequence[RepoFile]) -> list[dict[str, Any]]:
        """Downloads of the same files of the same commit, finished or not."""
        asked = (repo.hub, repo.repo, repo.revision, repo.commit)
        return [
            row
            for row in self._store.all(sa.select(_table).where(_table.c.repo == repo.repo))
            if (row["hub"], row["repo"], row["revision"], row["body"]["commit"]) == asked
            and set(files_of(row)) == set(files)
        ]

    def _check_room(self, hub: Hub, repo: str, revision: str | None, files: Sequence[RepoFile]) -> None:
        """Raises HubError unless what is missing fits beside what other downloads still miss."""
        missing = sum(
            max(file.size_bytes - client(hub).place(repo, revision, file).received_bytes(), 0)
            for file in files
        )
        others = [one for one in self.list() if one.state == "running" and one.hub == hub]
        promised = sum(one.total_bytes - one.received_bytes for one in others)
        free = repositories.free_bytes(hub)
        if missing + promised + _SPARE_BYTES > free:
            also = f", {size_words(promised)} of that for other downloads" if promised else ""
            raise HubError(
                f"{repo} needs {size_words(missing + promised)} in {client(hub).cache_dir()}{also}, "
                f"and {size_words(free)} are free.",
                hint="Delete models that you don't need, or have the cache on a larger disk "
                f"({'HF_HOME' if hub == 'huggingface' else 'MODELSCOPE_CACHE'}).",
                kind="disk",
            )

    def _add(self, repo: RepoFiles, files: Sequence[RepoFile]) -> str:
        download_id = new_id()
        for done in self._same(repo, files):  # it would be listed twice
            self._store.execute(sa.delete(_table).where(_table.c.download_id == done["download_id"]))
        hub = client(repo.hub)
        at = repo.commit or repo.revision
        before = [file.path for file in files if hub.place(repo.repo, at, file).whole.exists()]
        body = {"commit": repo.commit, "files": [asdict(file) for file in files], "before": before}
        row = {
            "download_id": download_id,
            "created_at": dt.datetime.now(dt.UTC),
            "hub": repo.hub,
            "repo": repo.repo,
            "revision": repo.revision,
            "body": body,
            "state": "paused",
        }
        self._store.execute(sa.insert(_table).values(row))
        self._spawn(download_id, self._row(download_id))
        return download_id

    def _spawn(self, download_id: str, row: Mapping[str, Any]) -> None:
        request = {
            "hub": row["hub"],
            "repo": row["repo"],
            "revision": row["revision"],
            "commit": row["body"]["commit"],
            "files": row["body"]["files"],
            "token": Secrets(self._settings).find(row["hub"]),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "core.hub.worker"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for its owner, which says what becomes of it
        )
        with contextlib.suppress(BrokenPipeError):  # it is gone already: the reader says so
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        received = {file.path: place_of(row, file).received_bytes() for file in files_of(row)}
        running = _Running(process, received)
        running.reader = threading.Thread(
            target=self._follow, args=(download_id, running), name=f"download-{download_id}", daemon=True
        )
        try:
            self._update(
                download_id, state="running", stage="Starting", message="", hint="", kind=None,
                received=received, worker_pid=process.pid, worker_started=_started(process.pid),
            )  # fmt: skip
        except WorkbenchError:
            process.kill()  # nobody would know of it
            raise
        finally:
            self._running[download_id] = running
            running.reader.start()

    # -- following -----------------------------------------------------------

    def _follow(self, download_id: str, running: _Running) -> None:
        """Read what the worker says until it ends, and keep it."""
        saved = 0.0
        last: dict[str, Any] = {}
        for line in running.process.stdout:
            if not line.endswith("\n"):
                break  # killed in the middle of a word
            last = json.loads(line)
            if "received" not in last:
                continue
            now = time.monotonic()
            running.received = running.received | last["received"]
            running.stage = last["stage"]
            running.seen.append((now, sum(running.received.values())))
            while now - running.seen[0][0] > _RATE_OVER_S:
                running.seen.popleft()
            if now - saved >= _SAVE_EVERY_S:
                saved = now
                seen = {"received": running.received, "stage": running.stage}
                with contextlib.suppress(WorkbenchError):  # a full disk: the next look may be kept
                    self._update(download_id, **seen, bytes_per_s=running.bytes_per_s())
        code = running.process.wait()
        for pipe in (running.process.stdin, running.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        ended = {"received": running.received, "bytes_per_s": None, "stage": ""}
        if "path" in last:
            ended |= {"state": "finished", "path": last["path"]}
        elif "error" in last:
            ended |= {"state": "failed", "message": last["error"], "hint": last["hint"], "kind": last["kind"]}
        elif code >= 0:  # not killed: it broke before it could say why
            said = f"The download's process ended with exit code {code}."
            ended |= {"state": "failed", "message": said, "hint": "Resume it.", "kind": "other"}
        running.ended = ended
        with contextlib.suppress(WorkbenchError):  # a full disk: what became of it is known here alone
            self._update(download_id, **ended)
            self._running.pop(download_id, None)

    def _end_worker(self, download_id: str, row: Mapping[str, Any]) -> None:
        running = self._running.get(download_id)
        if running is not None:
            running.process.kill()
            running.reader.join(10)
        elif is_alive(row["worker_pid"], row["worker_started"]):  # another process's
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(row["worker_pid"])
                process.kill()
                process.wait(10)

    # -- the catalogue ---------------------------------------------------------

    def _row(self, download_id: str) -> dict[str, Any]:
        row = self._store.first(sa.select(_table).where(_table.c.download_id == download_id))
        if row is None:
            raise ModelError(f"There is no download {download_id}.")
        return row

    def _update(self, download_id: str, **values: Any) -> None:
        self._store.execute(sa.update(_table).where(_table.c.download_id == download_id).values(values))


def _seen(row: Mapping[str, Any], running: _Running | None) -> Download:
    """`running` is looked up before the row is read: what ends is written before it is forgotten."""
    if running is None or running.ended:
        return read({**row, **running.ended} if running is not None else row)
    found = read(row, running.received)
    return replace(found, stage=running.stage, bytes_per_s=running.bytes_per_s())


def fetch_now(
    hub: Hub, repo: str, revision: str | None, settings: Settings, report: Callable[[str], None]
) -> Path:
    """Have a model here, and give its folder or GGUF file: what a load does that names one. Raises HubError.

    Whatever ends it early, an exception out of `report` too, keeps what came.
    """
    store = Store(settings.catalogue_path)
    downloads = Downloads(settings, store)
    try:
        report(f"Looking at {repo}")
        download_id = downloads.start(DownloadSpec(hub=hub, repo=repo, revision=revision))
        ended = downloads.wait(
            download_id, lambda now: report(f"Downloading {now.repo}: {int(now.share * 100)}%")
        )
        if ended.state == "finished" and ended.path is not None:
            downloads.forget(download_id)  # it is in the library now
            return ended.path
        if ended.state == "failed":
            raise ended.error()
        raise HubError(f"The download of {repo} was {ended.state}.", hint="Resume it on the models page.")
    finally:
        downloads.close()
        store.close()


def _started(pid: int) -> float | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).create_time()
    return None
