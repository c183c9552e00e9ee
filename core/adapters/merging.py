"""An adapter merged into its model: a new model in the workspace, made by a process of its own.

The model appears by one rename, when it is whole. What a merge that was cancelled or killed has
written is removed, at the latest when the next one begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from core.adapters import checks
from core.adapters.registry import Adapters, find_base
from core.errors import ModelError
from core.settings import Settings
from core.store import Store, is_alive, this_process

MergeState = Literal["running", "done", "failed", "cancelled"]
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,95}", re.ASCII)
_UNFINISHED = ".merging-"
_SPARE_BYTES = 200 << 20
_END_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeView:
    """A merge as it is now. `share` is written of the new model (0 to 1), None while nothing is written."""

    merge_id: str
    adapter: str
    base: str
    name: str
    state: MergeState = "running"
    stage: str = "Starting"
    share: float | None = None
    path: Path | None = None
    error: str = ""


@dataclass(slots=True)
class _Merge:
    view: MergeView
    process: subprocess.Popen[str]
    folder: Path
    target: Path
    note: str
    log: Path
    ended: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False
    answer: dict[str, Any] = field(default_factory=dict)


class Merges:
    """All merges of this process. Every method returns at once but `wait`, from any thread."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._adapters = Adapters(settings, store)
        self._lock = threading.Lock()
        self._merges: dict[str, _Merge] = {}

    def start(self, adapter: str, name: str, *, base: str | None = None) -> str:
        """Begin to merge; gives the merge's id.

        The new model is called `name`. `base` names another model than the one that the adapter says.
        Raises ModelError: an adapter or model that isn't there or doesn't fit, a name that is taken,
        too little room on the disk or in memory.
        """
        found = self._adapters.find(adapter)
        model = base or found.checked_with or found.base
        folder = find_base(model, self._settings)
        if folder is None:
            raise ModelError(
                f"The model {model or 'of this adapter'} is not on this machine.",
                hint="Download or load it first, or name the model to merge into.",
            )
        facts = checks.read_adapter(Path(found.folder))
        checks.check_base(facts, found.name, folder, model)
        size = _mergeable_bytes(folder, model)
        target = self._target(name)
        self._sweep()
        self._check_room(size)
        unfinished = self._settings.models_dir / _unfinished_name()
        unfinished.mkdir()
        asked = {"base": str(folder), "adapter": found.folder, "output": str(unfinished / "model")}
        merge_id = secrets.token_hex(6)
        log = unfinished / "log"
        merge = _Merge(
            view=MergeView(merge_id=merge_id, adapter=found.name, base=model, name=name),
            process=_worker(log),
            folder=unfinished,
            target=target,
            note=f"# {name}\n\n{model} with the LoRA adapter {found.name} merged into it.\n",
            log=log,
        )
        with self._lock:
            self._merges[merge_id] = merge
        threading.Thread(target=self._follow, args=(merge, asked), name=f"merge-{merge_id}").start()
        return merge_id

    def list(self) -> tuple[MergeView, ...]:
        """The newest first."""
        with self._lock:
            return tuple(merge.view for merge in reversed(self._merges.values()))

    def cancel(self, merge_id: str) -> None:
        """End it; what it has written is removed."""
        with self._lock:
            merge = self._merges.get(merge_id)
            if merge is None or merge.view.state != "running":
                return
            merge.is_cancelled = True
        with contextlib.suppress(ProcessLookupError):
            merge.process.kill()

    def forget(self, merge_id: str) -> None:
        """Leave a merge that has ended out of the list."""
        with self._lock:
            if merge_id in self._merges and self._merges[merge_id].view.state != "running":
                del self._merges[merge_id]

    def wait(self, merge_id: str, timeout_s: float | None = None) -> MergeView:
        """Wait until it has ended, or the time is over, and give how it is."""
        with self._lock:
            merge = self._merges[merge_id]
        # no join of its thread: Python forgets that a thread runs when Ctrl-C comes during one
        merge.ended.wait(timeout_s)
        return merge.view

    def close(self) -> None:
        """Cancel what runs. Safe to call twice."""
        for view in self.list():
            self.cancel(view.merge_id)
        for view in self.list():
            self.wait(view.merge_id, _END_PATIENCE_S)

    # -- the inside ------------------------------------------------------------

    def _target(self, name: str) -> Path:
        """The new model's folder. A name from outside becomes one only if it can be nothing else."""
        if not _NAME.fullmatch(name) or name.casefold() == "embedded":
            raise ModelError(
                f"{name!r} can't be a model's name.",
                hint="Take letters, digits and . _ + -, 96 at most, and begin with a letter or digit.",
            )
        taken = {path.name.casefold() for path in self._settings.models_dir.iterdir()}
        if name.casefold() in taken:
            raise ModelError(f"There is a model {name!r} already.", hint="Choose another name.")
        return self._settings.models_dir / name

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self._settings.models_dir).free
        needed = size + _SPARE_BYTES
        if free < needed:
            raise ModelError(
                f"The merged model needs {_gigabytes(needed)} of disk, and {_gigabytes(free)} are free in "
                f"{self._settings.models_dir}.",
                hint="Free some space, or set WORKBENCH_HOME to a folder on a larger disk.",
            )
        available = psutil.virtual_memory().available
        needed = int(1.2 * size) + (1 << 30)  # the model, and torch itself
        if available < needed:
            raise ModelError(
                f"Merging needs about {_gigabytes(needed)} of memory, and {_gigabytes(available)} are free.",
                hint="Unload the engine or close other programs, and try again.",
            )

    def _sweep(self) -> None:
        """Remove what merges of processes that died have left."""
        for path in self._settings.models_dir.glob(f"{_UNFINISHED}*"):
            pid, _, rest = path.name.removeprefix(_UNFINISHED).partition("-")
            started = rest.partition("-")[0]
            if not (pid.isdigit() and started.isdigit() and is_alive(int(pid), int(started) / 100)):
                shutil.rmtree(path, ignore_errors=True)

    def _follow(self, merge: _Merge, asked: Mapping[str, str]) -> None:
        """Have the worker do it, then put the model in its place or remove what there is."""
        try:
            code = self._work(merge, asked)
            if merge.is_cancelled:
                self._show(merge, state="cancelled", stage="Cancelled", share=None)
            elif code == 0:
                model = merge.folder / "model"
                (model / "README.md").write_text(merge.note, encoding="utf-8")
                model.rename(merge.target)
                self._show(merge, state="done", stage="Done", share=1.0, path=merge.target)
            else:
                self._show(merge, state="failed", stage="Failed", share=None, error=_reason(merge, code))
        except OSError as error:
            reason = f"The merged model can't be put in its place: {error}."
            self._show(merge, state="failed", stage="Failed", share=None, error=reason)
        finally:
            shutil.rmtree(merge.folder, ignore_errors=True)
            merge.ended.set()

    def _work(self, merge: _Merge, asked: Mapping[str, str]) -> int:
        """Tell the worker what to do and follow it to its end; gives its exit code."""
        process = merge.process
        with contextlib.suppress(BrokenPipeError):  # it died: its exit code says so
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            said = json.loads(line) if line.endswith("\n") else {}  # a kill may cut a line
            if "error" in said:
                merge.answer = said
            elif said:
                self._show(merge, stage=said["stage"], share=said.get("share"))
        code = process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return code

    def _show(self, merge: _Merge, **changes: Any) -> None:
        with self._lock:
            merge.view = replace(merge.view, **changes)


def _mergeable_bytes(folder: Path, model: str) -> int:
    """The size of the model's weights. Raises ModelError for weights that nothing can be added to."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{model} has no config.json that can be read: {error}.") from error
    if config.get("quantization_config"):
        raise ModelError(
            f"{model} is quantized: an adapter can't be added to its weights.",
            hint="Merge into the model that it was made from, or use the adapter as it is.",
        )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not size:
        raise ModelError(f"{model} has no safetensors weights.", hint="Choose another model to merge into.")
    return size


def _unfinished_name() -> str:
    started = int(this_process()["owner_started"] * 100)
    return f"{_UNFINISHED}{os.getpid()}-{started}-{secrets.token_hex(4)}"


def _worker(log: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):  # it has no use for them
        environment.pop(name, None)
    with log.open("w", encoding="utf-8") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "core.adapters.merge_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to handle
        )


def _reason(merge: _Merge, code: int) -> str:
    if merge.answer:
        return f"{merge.answer['error']} {merge.answer['hint']}"
    if code == -9:
        return "Its process was killed, most likely as the machine ran out of memory."
    lines = merge.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"Its process ended: {lines[-1] if lines else f'exit code {code}'}."


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
