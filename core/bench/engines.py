"""One workload on several engines in turn: transformers, llama.cpp, vLLM. Why people move to vLLM.

Each engine is loaded, measured and ended; what was loaded before comes back at the end. What is
measured are ordinary benchmarks, which carry the same `group`. Prompts are drawn from the model's own
vocabulary with the same seed, so that each engine reads the same number of tokens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core import engine_settings
from core.bench import figures
from core.bench.differences import Subject, measured
from core.bench.figures import Figure
from core.bench.records import BenchView
from core.bench.runner import Benchmarks
from core.bench.spec import BenchSpec, Load, RandomWorkload
from core.engines import choice
from core.errors import BenchError, WorkbenchError
from core.models.library import Library
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.store import new_id
from core.types import EngineName, EngineSpec

EntryState = Literal["waiting", "loading", "measuring", "done", "failed", "stopped"]
COMPARED: tuple[EngineName, ...] = ("transformers", "llamacpp", "vllm")
"""Those that compute here, the slowest first."""
GROUP = "engines-"
_POLL_S = 0.2
_WANTED = ("ready", "loading", "restarting")
_CLOSE_PATIENCE_S = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An engine with the model as it would load it, or why it can't take part."""

    engine: EngineName
    title: str
    spec: EngineSpec
    obstacle: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How far one engine is. `message`: why it failed."""

    engine: EngineName
    title: str
    state: EntryState = "waiting"
    message: str = ""
    benchmark_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LineUp:
    """One comparison of engines, as it is now. `message`: what went wrong with the whole of it."""

    group: str
    entries: tuple[Entry, ...]
    is_live: bool = True
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One engine at one load of the picture."""

    title: str
    benchmark_id: str
    load: Load | None
    figure: Figure


class Engines:
    """Comparisons of engines, one at a time. Every method returns at once, from any thread, but `wait`."""

    def __init__(self, benchmarks: Benchmarks, runtime: Runtime, saved: SavedSettings) -> None:
        self._benchmarks = benchmarks
        self._runtime = runtime
        self._saved = saved
        self._lock = threading.Lock()
        self._now: LineUp | None = None
        self._stopping = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def contenders(self, model: str, gguf: str | None = None) -> tuple[Contender, ...]:
        """All local engines with `model`; `gguf` is the same model's file for llama.cpp.

        The loaded engine takes part as it is loaded, the others as they would be.
        """
        here = choice.this_machine()
        found = []
        for engine in COMPARED:
            offer = choice.offer(engine, here)
            file = gguf or model
            is_file = file == "embedded" or file.lower().endswith(".gguf")
            obstacle = offer.obstacle
            if engine == "llamacpp" and not is_file and obstacle is None:
                obstacle = "llama.cpp reads GGUF files: choose one of the same model."
            elif engine != "llamacpp" and model.lower().endswith(".gguf") and obstacle is None:
                obstacle = "It reads no GGUF file: choose the same model's folder."
            spec = self._spec(engine, file if engine == "llamacpp" else model)
            found.append(Contender(engine=engine, title=offer.title, spec=spec, obstacle=obstacle))
        return tuple(found)

    def start(self, specs: Sequence[BenchSpec], contenders: Sequence[Contender]) -> str:
        """Load and measure one contender after the other; those with an obstacle are left out.

        Returns the group that their benchmarks carry. Raises BenchError when a comparison or a benchmark
        is at work, or fewer than two can take part.
        """
        able = [one for one in contenders if one.obstacle is None]
        if len(able) < 2:
            raise BenchError(
                f"Two engines are needed, and {len(able)} can run here.",
                hint="See Models, Engines, for what stands in the others' way.",
            )
        with self._lock:
            if self._now is not None and self._now.is_live:
                raise BenchError("Engines are being compared.", hint="Wait for it, or stop it first.")
            if self._benchmarks.at_work() is not None:
                raise BenchError("A benchmark is at work.", hint="Wait for it, or stop it first.")
            group = f"{GROUP}{new_id()}"
            entries = tuple(Entry(engine=one.engine, title=one.title) for one in able)
            self._now = LineUp(group=group, entries=entries)
            self._stopping.clear()
            named = [spec.model_copy(update={"group": group}) for spec in specs]
            self._thread = threading.Thread(
                target=self._main, args=(named, able), name="bench-engines", daemon=True
            )
            self._thread.start()
        return group

    def now(self) -> LineUp | None:
        """The comparison at work, or the last one of this process."""
        return self._now

    def stop(self) -> None:
        """Measure no more; what is done stays, and the engine of before comes back."""
        self._stopping.set()
        if (benchmark_id := self._benchmarks.at_work()) is not None and self._is_live():
            self._benchmarks.stop(benchmark_id)

    def wait(self, timeout_s: float | None = None) -> LineUp | None:
        """The comparison when it has ended, or as it is after `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._now

    def close(self) -> None:
        """Stop what is at work; the engine of before isn't loaded again."""
        if self._is_live():
            self._closing = True
            self.stop()
            self.wait(_CLOSE_PATIENCE_S)

    # -- the inside ------------------------------------------------------------

    def _is_live(self) -> bool:
        return self._now is not None and self._now.is_live

    def _spec(self, engine: EngineName, model: str) -> EngineSpec:
        loaded = self._runtime.status().spec
        if loaded is not None and (loaded.engine, loaded.model) == (engine, model):
            return loaded
        spec = EngineSpec(engine=engine, model=model)
        kept = self._saved.find(model)
        return self._saved.applied(spec) if kept is not None and kept.engine == engine else spec

    def _main(self, specs: Sequence[BenchSpec], contenders: Sequence[Contender]) -> None:
        before = self._runtime.status()
        message = ""
        try:
            for place, contender in enumerate(contenders):
                if self._stopping.is_set():
                    self._change(place, state="stopped")
                else:
                    self._one(place, contender, specs)
        except _Replaced:
            message = "Somebody else loaded a model, so the rest was not measured."
            self._stop_the_rest()
        except Exception as error:
            _log.exception("The comparison of engines could not go on")
            message = f"{type(error).__name__}: {error}"
            self._stop_the_rest()
        else:
            message = self._restore(before.spec if before.phase in _WANTED else None)
        with self._lock:
            if self._now is not None:
                self._now = replace(self._now, is_live=False, message=message)

    def _one(self, place: int, contender: Contender, specs: Sequence[BenchSpec]) -> None:
        self._change(place, state="loading")
        try:
            if not self._load(contender.spec):
                self._change(place, state="stopped")
                return
            for spec in specs:
                named = spec.model_copy(update={"name": f"{contender.title}, {_load_words(spec)}"})
                benchmark_id = self._benchmarks.start(named)
                ids = (*self._entry(place).benchmark_ids, benchmark_id)
                self._change(place, state="measuring", benchmark_ids=ids)
                view = self._measured(benchmark_id, contender.spec)
                if view.state == "failed":
                    self._change(place, state="failed", message=view.message)
                    return
                if view.state != "complete" or self._stopping.is_set():
                    self._change(place, state="stopped")
                    return
        except WorkbenchError as error:  # the next engine may well do
            self._change(place, state="failed", message=str(error))
            return
        self._change(place, state="done")

    def _load(self, spec: EngineSpec) -> bool:
        """Load it unless it is loaded; False when it was stopped. Raises what the load raises."""
        status = self._runtime.status()
        if status.phase != "ready" or status.spec != spec:
            self._runtime.load(spec)
        while True:
            status = self._runtime.status()
            if status.spec != spec:
                raise _Replaced
            if status.phase == "ready":
                return True
            if self._stopping.wait(_POLL_S):
                self._runtime.cancel_load()
                return False
            if status.phase not in ("loading", "restarting"):
                self._runtime.wait_ready(0)  # raises why

    def _measured(self, benchmark_id: str, spec: EngineSpec) -> BenchView:
        while True:
            try:
                view = self._benchmarks.wait(benchmark_id, _POLL_S)
            except TimeoutError:
                # stopped maybe before this one began; and what is no longer loaded has nothing to tell
                if self._stopping.is_set() or self._runtime.status().spec != spec:
                    self._benchmarks.stop(benchmark_id)
                continue
            if self._runtime.status().spec != spec:
                raise _Replaced
            return view

    def _restore(self, spec: EngineSpec | None) -> str:
        """Begin to load what was there before; gives why it can't, or ""."""
        status = self._runtime.status()
        if self._closing:
            return ""
        try:
            if spec is None:
                self._runtime.unload()
            elif status.phase != "ready" or status.spec != spec:
                self._runtime.load(spec)
        except WorkbenchError as error:
            return f"The engine of before can't be loaded again: {error}"
        return ""

    def _stop_the_rest(self) -> None:
        for place, entry in enumerate(self._now.entries if self._now else ()):
            if entry.state in ("waiting", "loading", "measuring"):
                self._change(place, state="stopped")

    def _entry(self, place: int) -> Entry:
        assert self._now is not None
        return self._now.entries[place]

    def _change(self, place: int, **values: object) -> None:
        with self._lock:
            if self._now is not None:
                entries = list(self._now.entries)
                entries[place] = replace(entries[place], **values)
                self._now = replace(self._now, entries=tuple(entries))


class _Replaced(Exception):
    """Somebody else has loaded another model meanwhile."""


def specs(
    *, at_once: int = 32, input_len: int = 128, output_len: int = 64, repeats: int = 3, seed: int = 0
) -> tuple[BenchSpec, BenchSpec]:
    """What is measured on each engine: few requests one after the other, then `at_once` at once."""
    asked = {"kind": "serve", "repeats": repeats, "seed": seed}
    lengths = {"input_len": input_len, "output_len": output_len}
    alone = RandomWorkload(num_prompts=4, **lengths)
    together = RandomWorkload(num_prompts=2 * at_once, **lengths)
    return (
        BenchSpec(workload=alone, loads=(Load(max_concurrency=1),), num_warmups=1, **asked),
        BenchSpec(workload=together, loads=(Load(max_concurrency=at_once),), num_warmups=at_once, **asked),
    )


def groups(views: Iterable[BenchView]) -> dict[str, tuple[BenchView, ...]]:
    """The kept comparisons of engines, the newest first: group -> its benchmarks, the oldest first."""
    found: dict[str, list[BenchView]] = {}
    for view in sorted(views, key=lambda one: (one.created_at, one.benchmark_id), reverse=True):
        if view.spec is not None and view.spec.group.startswith(GROUP) and view.points:
            found.setdefault(view.spec.group, []).insert(0, view)
    return {group: tuple(members) for group, members in found.items()}


def picture(subjects: Sequence[Subject], metric: str = "output_throughput") -> tuple[Bar, ...]:
    """`metric` of each engine at each load, the lighter load first."""
    bars = []
    for subject in subjects:
        for load, points in measured(subject.points).items():
            figure = figures.figure(metric, points)
            if figure is not None:
                bars.append(
                    Bar(
                        title=engine_title(subject.view),
                        benchmark_id=subject.view.benchmark_id,
                        load=load,
                        figure=figure,
                    )
                )
    return tuple(sorted(bars, key=lambda bar: (bar.load.max_concurrency or 0) if bar.load else 0))


def engine_title(view: BenchView) -> str:
    """The engine's name for people, as it was loaded for this benchmark."""
    name = str(view.environment.get("engine", ""))
    return choice.offer(name).title if name in choice.LOADERS else name or "not known"


def gguf_of(model: str, library: Library) -> str | None:
    """A GGUF file of this machine that seems to hold the same model: its name begins alike."""
    if model == "embedded":
        return model
    name = model.rstrip("/").rsplit("/", 1)[-1].casefold()
    ggufs = [one for one in library.list() if one.format == "gguf" and one.problem is None]
    named = (one.model for one in ggufs if one.path.name.casefold().startswith(name))
    return next(named, None)


def settings_words(spec: EngineSpec) -> str:
    """The settings that were given, in a line; "" where all are chosen for the machine."""
    return ", ".join(engine_settings.as_assignments(spec))


def _load_words(spec: BenchSpec) -> str:
    return ", ".join(load.title for load in spec.loads)
