"""The runtime's life cycle, with the scripted engine: loading, replacing, dying, ending."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import until

from core.comparing.runner import Comparisons
from core.comparing.spec import ComparisonSpec, PromptItem, SetSpec
from core.engines import scripted, watch
from core.engines.guard import Guard
from core.engines.scripted import ScriptedEngine
from core.errors import EngineDied, EngineLoadError, EngineNotReady, EngineUnavailable, ParameterError
from core.jobs import Jobs
from core.run_spec import Instructions
from core.runtime import Runtime
from core.settings import Settings
from core.store import Store
from core.types import EngineSpec, EngineStatus, Message, Request

SCRIPTED = EngineSpec(engine="scripted")


def wait_for(runtime: Runtime, condition: Callable[[EngineStatus], bool]) -> EngineStatus:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if condition(status := runtime.status()):
            return status
        time.sleep(0.01)
    raise AssertionError(f"never came: {runtime.status()}")


class Mortal(ScriptedEngine):
    """Dies when told to."""

    made = 0
    dead = False
    closed = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        type(self).made += 1

    async def check(self) -> None:
        if self.dead:
            raise EngineDied("The engine's process ended.")

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> type[Mortal]:
    monkeypatch.setattr(scripted, "ScriptedEngine", Mortal)
    monkeypatch.setattr(watch, "RESTART_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(Mortal, "made", 0)
    return Mortal


def test_empty_until_asked(settings: Settings) -> None:
    runtime = Runtime(settings)
    assert runtime.status().phase == "empty"
    with pytest.raises(EngineNotReady, match="No model is loaded"):
        _ = runtime.engine
    with pytest.raises(EngineNotReady):
        runtime.wait_ready()
    runtime.close()


def test_ready_engine_answers(scripted_runtime: Runtime) -> None:
    engine = scripted_runtime.engine
    answer = scripted_runtime.run(engine.complete(Request(id="1", prompt="red green")))
    status = scripted_runtime.status()
    assert answer.text.endswith("red green")
    assert (status.phase, status.info, status.spec) == ("ready", engine.info, SCRIPTED)
    assert status.stats.output_tokens == answer.output_tokens


def test_unload_then_load_again(scripted_runtime: Runtime) -> None:
    first = scripted_runtime.engine
    scripted_runtime.unload()
    assert wait_for(scripted_runtime, lambda status: status.phase == "empty").info is None
    scripted_runtime.load(SCRIPTED)
    assert scripted_runtime.wait_ready(10) is not first


def test_default_spec_comes_from_the_settings(settings: Settings) -> None:
    runtime = Runtime(settings.model_copy(update={"engine": "scripted", "max_model_len": 64}))
    runtime.ensure_loaded()
    assert runtime.wait_ready(10).info.max_model_len == 64
    runtime.close()


def test_ensure_loaded_leaves_a_choice_alone(settings: Settings) -> None:
    runtime = Runtime(settings.model_copy(update={"engine": "scripted"}))
    runtime.load(SCRIPTED)
    engine = runtime.wait_ready(10)
    runtime.ensure_loaded()
    assert runtime.wait_ready(10) is engine
    runtime.unload()
    wait_for(runtime, lambda status: status.phase == "empty")
    runtime.ensure_loaded()
    assert runtime.status().phase == "empty"
    runtime.close()


def test_ensure_loaded_obeys_autoload(settings: Settings) -> None:
    runtime = Runtime(settings.model_copy(update={"engine": "scripted", "autoload": False}))
    runtime.ensure_loaded()
    assert runtime.status().phase == "empty"
    runtime.close()


def test_failed_load_says_why_and_another_can_follow(settings: Settings) -> None:
    runtime = Runtime(settings)
    runtime.load(EngineSpec(engine="abacus"))  # type: ignore[arg-type]
    with pytest.raises(EngineUnavailable, match="no engine 'abacus'"):
        runtime.wait_ready(10)
    status = runtime.status()
    assert (status.phase, str(status.error)) == (
        "failed",
        "There is no engine 'abacus'. Use one of vllm, transformers, llamacpp, openai, scripted.",
    )
    with pytest.raises(EngineNotReady, match="abacus"):
        _ = runtime.engine
    with pytest.raises(EngineUnavailable):
        runtime.run(runtime.wait_engine())
    runtime.load(SCRIPTED)
    assert runtime.wait_ready(10)
    runtime.close()


def test_unexpected_failure_becomes_a_load_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no luck today")

    monkeypatch.setattr(scripted, "ScriptedEngine", fail)
    runtime = Runtime(settings)
    runtime.load(SCRIPTED)
    with pytest.raises(EngineLoadError, match="RuntimeError: no luck today"):
        runtime.wait_ready(10)
    runtime.close()


def test_load_replaces_the_engine_and_closes_the_old_one(settings: Settings, mortal: type[Mortal]) -> None:
    runtime = Runtime(settings)
    runtime.load(SCRIPTED)
    first = runtime.wait_ready(10)
    runtime.load(EngineSpec(engine="scripted", max_model_len=99))
    second = runtime.wait_ready(10)
    assert (first.closed, second.closed, second.info.max_model_len) == (True, False, 99)
    runtime.close()
    assert second.closed


def test_slow_load_is_cancelled_and_its_engine_never_appears(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, made = threading.Event(), threading.Event(), []

    class Slow(Mortal):
        def __init__(self, spec: EngineSpec, **kwargs: object) -> None:
            super().__init__(spec, **kwargs)
            if spec.model == "slow":
                begun.set()
                go_on.wait(10)
            made.append(self)

    monkeypatch.setattr(scripted, "ScriptedEngine", Slow)
    runtime = Runtime(settings)
    runtime.load(EngineSpec(engine="scripted", model="slow"))
    assert begun.wait(10)
    with pytest.raises(EngineNotReady, match="loading"):
        _ = runtime.engine
    with pytest.raises(EngineNotReady, match="loading"):
        runtime.wait_ready(0.01)
    runtime.cancel_load()
    go_on.set()
    assert wait_for(runtime, lambda status: status.phase != "unloading").phase == "empty"
    assert [engine.closed for engine in made] == [True]
    runtime.close()


def test_last_of_many_loads_wins(settings: Settings, mortal: type[Mortal]) -> None:
    runtime = Runtime(settings)
    for length in range(20, 60):
        runtime.load(EngineSpec(engine="scripted", max_model_len=length))
    assert runtime.wait_ready(10).info.max_model_len == 59
    runtime.close()


def test_a_spec_that_makes_no_sense_is_refused_and_the_engine_stays(scripted_runtime: Runtime) -> None:
    engine = scripted_runtime.engine
    with pytest.raises(ParameterError, match="max_model_len=3 is out of range"):
        scripted_runtime.load(EngineSpec(engine="scripted", max_model_len=3))
    with pytest.raises(ParameterError, match="setting of vllm"):
        scripted_runtime.load(EngineSpec(engine="scripted", tensor_parallel_size=2))
    assert scripted_runtime.engine is engine


def test_memory_is_read_around_each_load_and_unload(scripted_runtime: Runtime) -> None:
    scripted_runtime.load(SCRIPTED)
    scripted_runtime.wait_ready(10)
    scripted_runtime.unload()
    wait_for(scripted_runtime, lambda status: status.phase == "empty")
    readings = scripted_runtime.memory_readings()
    assert [reading.event for reading in readings] == ["load", "unload", "load", "unload"]
    assert {reading.model for reading in readings} == {"scripted"}
    assert all(reading.before_bytes > 0 and reading.after_bytes > 0 for reading in readings)
    assert list(readings) == sorted(readings, key=lambda reading: reading.at)


def test_users_of_the_engine_are_counted_by_kind(scripted_runtime: Runtime) -> None:
    busy = {"chats": 2, "comparisons": 0}
    for kind in busy:
        scripted_runtime.add_user(kind, lambda kind=kind: busy[kind])
    assert scripted_runtime.in_use() == {"chats": 2}
    busy.update(chats=0)
    assert scripted_runtime.in_use() == {}


def test_runs_and_comparisons_at_work_are_users(runtime: Runtime, tmp_path: Path) -> None:
    store = Store(runtime.settings.catalogue_path)
    jobs, comparisons = Jobs(runtime, store), Comparisons(runtime, store)
    table = tmp_path / "table.csv"
    table.write_text("text\n" + "one two three four five six seven eight nine ten\n" * 3)
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}"))
    assert runtime.in_use() == {}
    jobs.start(run.run_id)
    assert runtime.in_use() == {"batch runs": 1}
    prompt = PromptItem(messages=(Message("user", "one two three four five six seven eight"),))
    comparisons.start(ComparisonSpec(prompts=(prompt,), sets=(SetSpec(name="A"),)))
    assert runtime.in_use() == {"batch runs": 1, "comparisons": 1}
    jobs.wait(run.run_id, 30)
    wait_for(runtime, lambda status: not runtime.in_use())
    jobs.close()
    comparisons.close()
    store.close()


@pytest.mark.parametrize(
    ("values", "engine", "base_url"),
    [
        ({"engine": "auto", "base_url": "http://gpu-box:8000/v1", "model": "org/x"}, "openai", True),
        ({"engine": "scripted", "base_url": "http://gpu-box:8000/v1"}, "scripted", False),
        ({"engine": "transformers", "kv_cache_memory_bytes": 1 << 30}, "transformers", False),
    ],
)
def test_default_spec_has_only_what_its_engine_takes(
    settings: Settings, values: dict[str, object], engine: str, base_url: bool
) -> None:
    runtime = Runtime(settings.model_copy(update=values))
    spec = runtime.default_spec()
    assert (spec.engine, bool(spec.base_url), spec.kv_cache_memory_bytes) == (engine, base_url, None)
    runtime.close()


def test_dead_engine_is_restarted_while_idle(settings: Settings, mortal: type[Mortal]) -> None:
    runtime = Runtime(settings)
    runtime.load(SCRIPTED)
    first = runtime.wait_ready(10)
    first.dead = True
    wait_for(runtime, lambda status: mortal.made == 2 and status.phase == "ready")
    second = runtime.engine
    assert second is not first
    assert second.spec == first.spec
    assert first.closed
    runtime.close()


def test_wait_engine_never_hands_out_a_dead_engine(settings: Settings, mortal: type[Mortal]) -> None:
    runtime = Runtime(settings)
    runtime.load(SCRIPTED)
    first = runtime.wait_ready(10)
    first.dead = True
    assert runtime.run(runtime.wait_engine()) is not first
    runtime.close()


def test_engine_that_keeps_dying_fails_for_good(settings: Settings, mortal: type[Mortal]) -> None:
    runtime = Runtime(settings)
    runtime.load(SCRIPTED)
    runtime.wait_ready(10)
    with pytest.raises(EngineLoadError, match=r"process ended\. It was restarted 3 times"):
        while True:
            runtime.run(runtime.wait_engine()).dead = True
    assert mortal.made == 4
    assert runtime.status().phase == "failed"
    runtime.load(SCRIPTED)  # asking again starts the count anew
    runtime.wait_ready(10).dead = True
    assert runtime.run(runtime.wait_engine())
    runtime.close()


def test_restart_that_fails_is_tried_again(
    settings: Settings, mortal: type[Mortal], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(settings)
    runtime.load(SCRIPTED)
    first = runtime.wait_ready(10)
    failures = iter([RuntimeError("port taken")])

    class Sickly(Mortal):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            for failure in failures:
                raise failure

    monkeypatch.setattr(scripted, "ScriptedEngine", Sickly)
    first.dead = True
    assert isinstance(runtime.run(runtime.wait_engine()), Sickly)
    runtime.close()


def test_rates_follow_the_tokens(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(SCRIPTED)
    meter = watch.SpeedMeter()
    meter.sample(engine, 10.0)
    asyncio.run(engine.complete(Request(id="1", prompt="one two three")))  # 4 tokens
    meter.sample(engine, 12.0)
    meter.sample(engine, 13.0)
    assert meter.rates(14.0) == ((2.0, 2.0), (1.0, 0.0))
    meter.sample(ScriptedEngine(SCRIPTED), 14.0)
    assert meter.rates(14.0) == ()


def test_run_returns_and_raises_what_the_coroutine_does(scripted_runtime: Runtime) -> None:
    async def divide(by: int) -> float:
        return 6 / by

    assert scripted_runtime.run(divide(2)) == 3
    with pytest.raises(ZeroDivisionError):
        scripted_runtime.run(divide(0))


def test_cancelling_a_spawned_future_cancels_its_task(scripted_runtime: Runtime) -> None:
    started, ended = threading.Event(), threading.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            ended.set()

    future = scripted_runtime.spawn(work())
    assert started.wait(10)
    future.cancel()
    assert ended.wait(10)


def test_run_on_the_loop_itself_is_refused_instead_of_hanging(scripted_runtime: Runtime) -> None:
    async def nested() -> None:
        scripted_runtime.run(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="Use await"):
        scripted_runtime.run(nested())


def test_close_twice_and_nothing_after(settings: Settings) -> None:
    before = set(threading.enumerate())
    runtime = Runtime(settings)
    runtime.load(SCRIPTED)
    runtime.wait_ready(10)
    runtime.close()
    runtime.close()
    until(lambda: set(threading.enumerate()) <= before)  # a thread that has given its result still ends
    with pytest.raises(EngineNotReady, match="closing"):
        runtime.load(SCRIPTED)
    assert runtime.status().phase == "empty"


def test_guard_leaves_strangers_alone() -> None:
    guard = Guard()
    guard.begin()
    guard.adopt()
    assert guard.pids == ()
    guard.end_all()
    guard.close()
    guard.close()
