"""The one loaded engine: load, unload, watch, restart.

All changes of engine go through one coroutine at a time (`_switch`). Each call of
`load`, `unload` or `cancel_load` begins a new generation; what belongs to an older
one gives up at its next step. `status` reads one immutable snapshot, so it never waits.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from core import engine_settings, memory
from core.engine_state import State, engine_of, load_failure, not_ready
from core.engines import choice
from core.engines.base import Engine
from core.engines.engine_log import EngineLog, stage_of
from core.engines.guard import Guard
from core.engines.loop import LoopThread
from core.engines.watch import RESTART_DELAYS_S, RESTART_WINDOW_S, RestartBudget, SpeedMeter
from core.errors import EngineDied, EngineLoadError, EngineNotReady
from core.models import locate
from core.settings import Settings, load_settings
from core.slots import Slots
from core.types import EnginePhase, EngineSpec, EngineStats, EngineStatus, MemoryReading

T = TypeVar("T")

_TICK_S = 0.2
_SAMPLE_S = 1.0
_UNLOAD_GRACE_S = 20.0
_HEAVY_LOAD_S = 1.0
"""An engine that loads sooner holds nothing, and gives nothing back."""


class _Superseded(Exception):
    """A newer load, unload or close has taken over."""


class Runtime:
    """Owns the loop thread, the guard process and at most one engine. Safe from any thread."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        # Started later, from a thread with SIGINT blocked, it would unblock SIGINT there.
        resource_tracker.ensure_running()
        self._changed = threading.Condition()
        self._state = State("empty", time.monotonic())
        self._generation = 0
        self._building = False
        self._closed = False
        self._touched = False
        self._held: Engine | None = None
        self._restarts = RestartBudget()
        self._speed = SpeedMeter()
        self._memory = memory.MemoryLog()
        self._users: dict[str, Callable[[], int]] = {}
        self._log = EngineLog(self.settings.logs_dir)
        self._guard = Guard()
        self._switching = asyncio.Lock()
        self._known_slots = 1
        self.slots = Slots(self._batch_slots)
        self._loop = LoopThread()
        self._watcher = self._loop.spawn(self._watch())
        atexit.register(self.close)

    # What to load

    def default_spec(self) -> EngineSpec:
        """The spec that the settings ask for."""
        settings, engine = self.settings, self.settings.engine
        if engine == "auto":
            file = locate.file_of(settings.model, settings)
            engine = "openai" if settings.base_url else choice.suggest(file)
        return engine_settings.for_engine(
            EngineSpec(
                engine=engine,
                model=settings.model,
                base_url=settings.base_url,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_num_seqs,
                kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                enforce_eager=settings.enforce_eager,
            )
        )

    def load(self, spec: EngineSpec | None = None) -> None:
        """Begin to load `spec` in place of what is loaded. Returns at once; `status` shows how it goes.

        Raises ParameterError for a spec that can't be loaded here: then nothing is ended.
        """
        spec = spec or self.default_spec()
        engine_settings.validate(spec, choice.this_machine())
        self._restarts.reset()
        generation = self._begin("loading", "Ending the engine before", spec)
        self._loop.spawn(self._switch(generation, spec))

    def ensure_loaded(self, spec: EngineSpec | None = None) -> None:
        """Load `spec` or the default once, if the settings say so and nobody asked for anything yet."""
        with self._changed:
            if self._touched or self._closed or not self.settings.autoload:
                return
            self._touched = True
        self.load(spec)

    def cancel_load(self) -> None:
        """Give up a load or restart under way; without one, nothing happens."""
        if self._state.phase in ("loading", "restarting"):
            self.unload()

    def unload(self) -> None:
        """Begin to end the engine and free its memory. Returns at once."""
        generation = self._begin("unloading", "Ending the engine", self._state.spec)
        self._loop.spawn(self._switch(generation, None))

    # What there is

    def status(self) -> EngineStatus:
        """A snapshot; never waits for the engine."""
        state, now = self._state, time.monotonic()
        rates = self._speed.rates(now)
        return EngineStatus(
            phase=state.phase,
            stage=state.stage,
            since_s=now - state.since,
            spec=state.spec,
            info=state.engine.info if state.engine else None,
            stats=state.engine.stats() if state.engine else EngineStats(),
            output_tokens_per_s=rates[-1][1] if rates and state.phase == "ready" else 0.0,
            rates=rates,
            error=state.error,
            log=self._log.lines,
        )

    @property
    def engine(self) -> Engine:
        """The engine, ready for requests. Raises EngineNotReady, saying what is going on."""
        state = self._state
        if state.engine is None:
            raise not_ready(state)
        return state.engine

    def wait_ready(self, timeout_s: float | None = None) -> Engine:
        """Wait on this thread for the engine.

        Raises EngineLoadError or EngineUnavailable when it failed, EngineNotReady when
        nothing is being loaded or `timeout_s` is over.
        """
        pending = ("loading", "restarting", "unloading")
        with self._changed:
            self._changed.wait_for(lambda: self._state.phase not in pending, timeout_s)
            return engine_of(self._state)

    async def wait_engine(self) -> Engine:
        """Wait on the loop for a live engine, through loads and restarts. Raises as `wait_ready`."""
        while True:
            state = self._state
            if state.engine is not None:
                # A request may fail of the engine's death before the watch has seen it: a caller
                # that asks for an engine then must not get the dead one again.
                try:
                    await state.engine.check()
                except EngineDied as error:
                    self._restart(state.engine, error)
                else:
                    return state.engine
            elif state.phase in ("loading", "restarting"):
                await asyncio.sleep(0.05)
            else:
                return engine_of(state)

    def memory_readings(self) -> tuple[MemoryReading, ...]:
        """Memory before and after each of the last loads and unloads, oldest first."""
        return self._memory.readings()

    def add_user(self, kind: str, count: Callable[[], int]) -> None:
        """Have `in_use` ask `count` how many of a kind ("chats", "batch runs") need the engine now."""
        self._users[kind] = count

    def in_use(self) -> Mapping[str, int]:
        """How many of each kind would be interrupted by another load; kinds with none are left out."""
        counts = {kind: count() for kind, count in self._users.items()}
        return {kind: count for kind, count in counts.items() if count}

    # Work on the loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run on the engine's loop and wait for the result; Ctrl-C cancels the coroutine first."""
        return self._loop.run(coroutine)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start on the engine's loop. Cancelling the future cancels the task."""
        return self._loop.spawn(coroutine)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Await a blocking `function` on a thread of its own, also while the interpreter ends."""
        return await self._loop.in_thread(function)

    def close(self) -> None:
        """End engine, loop and guard, and leave no process behind. Safe to call twice."""
        with self._changed:
            if self._closed:
                return
            generation = self._begin("unloading", "Ending the engine", None)
            self._closed = True
        atexit.unregister(self.close)
        try:
            ending = self._loop.spawn(self._switch(generation, None))
            with contextlib.suppress(concurrent.futures.TimeoutError):  # the guard ends what hangs
                ending.result(_UNLOAD_GRACE_S)
        finally:
            self._guard.end_all()
            self._guard.close()
            self._loop.stop()

    # The inside

    def _batch_slots(self) -> int:
        """While the engine restarts, as many as before: who holds one waits for it."""
        engine = self._state.engine
        if engine is not None:
            self._known_slots = engine.info.batch_slots + engine.info.batch_ahead
        return self._known_slots

    def _begin(self, phase: EnginePhase, stage: str, spec: EngineSpec | None) -> int:
        with self._changed:
            if self._closed:
                raise EngineNotReady("The workbench is closing.")
            self._generation += 1
            self._touched = True
            self._state = State(phase, time.monotonic(), stage, spec)
            self._changed.notify_all()
            generation, building = self._generation, self._building
        if building:
            self._guard.end_all()
        return generation

    def _enter(self, generation: int, state: State) -> None:
        """Change state, unless this generation is over: then raise _Superseded."""
        with self._changed:
            if generation != self._generation:
                raise _Superseded
            self._state = state
            self._changed.notify_all()

    def _report(self, generation: int, stage: str) -> None:
        self._enter(generation, replace(self._state, stage=stage))

    async def _switch(self, generation: int, spec: EngineSpec | None, delay_s: float = 0) -> None:
        """End the engine there is and, with a spec, make the next one."""
        async with self._switching:
            # Also for a generation that is over: its successor waits for the lock.
            await self._drop_engine()
            with contextlib.suppress(_Superseded):
                if spec is None:
                    self._enter(generation, State("empty", time.monotonic()))
                else:
                    await self._pause(generation, delay_s)
                    await self._make_engine(generation, spec)

    async def _make_engine(self, generation: int, spec: EngineSpec) -> None:
        restarting = self._state.phase == "restarting"
        _, before = await self._loop.in_thread(memory.in_use)
        while True:
            try:
                engine = await self._loop.in_thread(lambda: self._build(generation, spec))
                break
            except _Superseded:
                raise
            except Exception as error:
                self._guard.end_all()
                failure = load_failure(error, self._log.lines)
                delay = self._restarts.next_delay_s() if restarting else None
                if delay is None:
                    state = State("failed", time.monotonic(), spec=spec, error=failure)
                    return self._enter(generation, state)
                self._report(generation, f"Trying again: {failure.message}")
                await self._pause(generation, delay)
        self._held = engine
        if engine.info.load_s >= _HEAVY_LOAD_S:
            await self._loop.in_thread(memory.settle)
        await self._loop.in_thread(lambda: self._memory.add("load", engine.info.model, before))
        try:
            self._enter(generation, State("ready", time.monotonic(), spec=spec, engine=engine))
        except _Superseded:
            await self._drop_engine()
            raise

    def _build(self, generation: int, spec: EngineSpec) -> Engine:
        """Make the engine; blocks for as long as that takes."""
        report = lambda stage: self._report(generation, stage)  # noqa: E731
        report("Preparing the engine")
        load = choice.loader(spec.engine)
        self._guard.begin()
        with self._changed:
            if generation != self._generation:
                raise _Superseded
            self._building = True
        try:
            return load(spec, self.settings, report=report, log=self._log, guard=self._guard, run=self.run)
        finally:
            self._building = False

    async def _drop_engine(self) -> None:
        engine, self._held = self._held, None
        if engine is not None:
            _, before = await self._loop.in_thread(memory.in_use)
            info = engine.info
            await engine.close()
            del engine  # its tokenizer alone is 50 MB
            if info.load_s >= _HEAVY_LOAD_S:
                await self._loop.in_thread(memory.give_back)
            await self._loop.in_thread(lambda: self._memory.add("unload", info.model, before))

    async def _pause(self, generation: int, seconds: float) -> None:
        """Sleep, but give up soon when this generation is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if generation != self._generation:
                raise _Superseded
            await asyncio.sleep(min(_TICK_S, seconds))

    # The watch

    async def _watch(self) -> None:
        """Follow the log and the new processes of a load; look after a ready engine and its speed."""
        looked_at = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            self._follow_log()
            if self._building:
                self._guard.adopt()
            engine, now = self._state.engine, time.monotonic()  # held for a tick only: it may be ended
            if engine is None or now - looked_at < _SAMPLE_S:
                continue
            looked_at = now
            try:
                await engine.check()
            except EngineDied as error:
                self._restart(engine, error)
            else:
                self._speed.sample(engine, now)

    def _follow_log(self) -> None:
        for line in self._log.poll():
            stage = stage_of(line, self._state.stage)
            if stage:
                with self._changed:
                    if self._state.phase in ("loading", "restarting"):
                        self._state = replace(self._state, stage=stage)

    def _restart(self, engine: Engine, error: EngineDied) -> None:
        """Load the same spec again after the engine died, unless it dies too often. On the loop."""
        with self._changed:
            state = self._state
            if state.engine is not engine or self._closed:
                return  # somebody else has seen it, or the engine was ended on purpose
            self._generation += 1
            generation, spec = self._generation, state.spec
            delay = self._restarts.next_delay_s()
            now = time.monotonic()
            if delay is None:
                failure = EngineLoadError(
                    f"{error.message} It was restarted {len(RESTART_DELAYS_S)} times in "
                    f"{RESTART_WINDOW_S / 60:.0f} minutes already.",
                    hint="Load it again with other settings, or another model.",
                    log=self._log.lines,
                )
                self._state = State("failed", now, spec=spec, error=failure)
            else:
                self._state = State("restarting", now, error.message, spec)
            self._changed.notify_all()
        if delay is None:
            self._loop.spawn(self._discard())
        else:
            self._loop.spawn(self._switch(generation, spec, delay))

    async def _discard(self) -> None:
        async with self._switching:
            await self._drop_engine()
