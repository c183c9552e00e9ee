"""One workload on several engines in turn: order, failures, stopping, and the engine that comes back."""

import pytest
from waiting import until as waited

from core.bench import engines
from core.bench.engines import Contender, Engines
from core.bench.runner import Benchmarks
from core.bench.spec import BenchSpec, Load, RandomWorkload
from core.errors import BenchError
from core.saved_settings import SavedSettings
from core.store import Store
from core.types import EngineSpec

BEFORE = EngineSpec(engine="scripted", max_num_seqs=3)
SHORT = [
    BenchSpec(
        kind="serve",
        workload=RandomWorkload(num_prompts=2, input_len=8, output_len=4),
        loads=(Load(max_concurrency=2),),
        num_warmups=0,
        repeats=2,
    )
]
LONG = [SHORT[0].model_copy(update={"workload": RandomWorkload(num_prompts=4, input_len=8, output_len=2000)})]


@pytest.fixture
def parts(runtime):
    """(runtime with `BEFORE` loaded, benchmarks, engines); 100 tokens a second."""
    store = Store(runtime.settings.catalogue_path)
    runtime.load(BEFORE)
    runtime.wait_ready(20)
    benchmarks = Benchmarks(runtime, store, runtime.settings)
    compared = Engines(benchmarks, runtime, SavedSettings(store))
    yield runtime, benchmarks, compared
    compared.close()
    benchmarks.close()
    store.close()


def contender(title, **settings):
    return Contender(engine="scripted", title=title, spec=EngineSpec(engine="scripted", **settings))


def gone():
    """An engine that can be chosen, but whose server isn't there."""
    spec = EngineSpec(engine="openai", model="x", base_url="http://127.0.0.1:9/v1")
    return Contender(engine="openai", title="gone", spec=spec)


def states(compared):
    return [entry.state for entry in compared.now().entries]


def ready_with(runtime, spec):
    waited(lambda: runtime.status().phase == "ready" and runtime.status().spec == spec, timeout_s=20)
    return True


def test_each_is_measured_and_the_engine_of_before_comes_back(parts):
    runtime, benchmarks, compared = parts
    group = compared.start(SHORT, [contender("one", max_num_seqs=4), contender("two", max_num_seqs=5)])
    compared.wait(60)
    assert states(compared) == ["done", "done"]
    members = engines.groups(benchmarks.recent())[group]
    assert [view.name for view in members] == ["one, 2 at once", "two, 2 at once"]
    assert [view.environment["max_num_seqs"] for view in members] == [4, 5]
    assert [len(view.points) for view in members] == [2, 2]
    assert ready_with(runtime, BEFORE)


def test_one_that_fails_does_not_stop_the_others(parts):
    runtime, _benchmarks, compared = parts
    compared.start(SHORT, [gone(), contender("two", max_num_seqs=5)])
    compared.wait(60)
    assert states(compared) == ["failed", "done"]
    assert compared.now().entries[0].message
    assert ready_with(runtime, BEFORE)


def test_a_stop_keeps_what_is_done_and_gives_the_engine_back(parts):
    runtime, benchmarks, compared = parts
    compared.start(LONG, [contender("one", max_num_seqs=4), contender("two", max_num_seqs=5)])
    waited(lambda: benchmarks.at_work() is not None, timeout_s=20)
    compared.stop()
    compared.wait(30)
    assert states(compared) == ["stopped", "stopped"]
    assert benchmarks.recent()[0].state == "stopped"
    assert ready_with(runtime, BEFORE)


def test_somebody_elses_load_ends_it_and_stays(parts):
    runtime, benchmarks, compared = parts
    other = EngineSpec(engine="scripted", max_num_seqs=9)
    compared.start(LONG, [contender("one", max_num_seqs=4), contender("two", max_num_seqs=5)])
    waited(lambda: benchmarks.at_work() is not None, timeout_s=20)
    runtime.load(other)
    compared.wait(60)
    assert "done" not in states(compared)
    assert "Somebody else loaded a model" in compared.now().message
    assert ready_with(runtime, other)


def test_it_waits_for_nobody(parts):
    _runtime, benchmarks, compared = parts
    two = [contender("one", max_num_seqs=4), contender("two", max_num_seqs=5)]
    at_work = benchmarks.start(LONG[0])
    with pytest.raises(BenchError, match="A benchmark is at work"):
        compared.start(SHORT, two)
    benchmarks.stop(at_work)
    benchmarks.wait(at_work, 20)
    compared.start(LONG, two)
    with pytest.raises(BenchError, match="Engines are being compared"):
        compared.start(SHORT, two)


def test_those_with_an_obstacle_are_left_out_and_one_alone_is_refused(parts):
    _runtime, _benchmarks, compared = parts
    missing = Contender(engine="llamacpp", title="x", spec=EngineSpec(engine="llamacpp"), obstacle="missing")
    with pytest.raises(BenchError, match="Two engines are needed, and 1 can run here"):
        compared.start(SHORT, [contender("one"), missing])


def test_contenders_say_what_stands_in_their_way(parts):
    _runtime, _benchmarks, compared = parts
    found = {one.engine: one for one in compared.contenders("Qwen/Qwen3-8B")}
    assert list(found) == ["transformers", "llamacpp", "vllm"]
    assert found["llamacpp"].obstacle is not None  # it reads GGUF files only
    given = {one.engine: one for one in compared.contenders("Qwen/Qwen3-8B", "/models/qwen3-8b.gguf")}
    assert given["llamacpp"].spec.model == "/models/qwen3-8b.gguf"
    assert given["vllm"].spec.model == "Qwen/Qwen3-8B"


def test_both_loads_ask_the_same_lengths_of_every_engine():
    alone, together = engines.specs(at_once=16, input_len=100, output_len=20, repeats=2)
    assert [spec.loads[0].max_concurrency for spec in (alone, together)] == [1, 16]
    lengths = {(spec.workload.input_len, spec.workload.output_len) for spec in (alone, together)}
    assert lengths == {(100, 20)}
    assert together.workload.num_prompts >= 16
