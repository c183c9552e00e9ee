"""Benchmarks at work on the scripted engine: what is measured, kept, stopped and what survives."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pynvml
import pytest
from test_adapters import make_adapter

from core.adapters.registry import Adapters
from core.bench import endings, files, knee, telemetry, workloads
from core.bench.runner import Benchmarks
from core.bench.spec import BenchSpec, Load, RandomWorkload, SharedPrefixWorkload, Sweep, TableWorkload
from core.bench.store import BenchStore
from core.engines.scripted import ScriptedEngine
from core.errors import BenchError, EngineDied, ParameterError, RequestRejected, WorkbenchError
from core.run_spec import PromptSpec
from core.runtime import Runtime
from core.store import Store
from core.types import EngineInfo
from tests.in_flight import most_at_once
from tests.waiting import until

SMALL = RandomWorkload(num_prompts=6, input_len=20, output_len=8)


@pytest.fixture
def benchmarks(runtime: Runtime) -> Iterator[Benchmarks]:
    """On the scripted engine with 100 tokens a second."""
    store = Store(runtime.settings.catalogue_path)
    benchmarks = Benchmarks(runtime, store, runtime.settings)
    yield benchmarks
    benchmarks.close()
    store.close()


@pytest.fixture
def at_once(make_scripted_runtime: Callable[..., Runtime]) -> Iterator[Benchmarks]:
    """On a scripted engine that answers at once."""
    runtime = make_scripted_runtime()
    store = Store(runtime.settings.catalogue_path)
    benchmarks = Benchmarks(runtime, store, runtime.settings)
    yield benchmarks
    benchmarks.close()
    store.close()


def spec(kind="serve", **values) -> BenchSpec:
    return BenchSpec(**{"kind": kind, "workload": SMALL, "num_warmups": 2, **values})


def done(benchmarks: Benchmarks, asked: BenchSpec):
    return benchmarks.wait(benchmarks.start(asked), 30)


def engine_of(benchmarks: Benchmarks) -> ScriptedEngine:
    return benchmarks._runtime.engine


def test_throughput_counts_all_tokens_of_the_requests_and_none_of_the_warm_up(benchmarks):
    view = done(benchmarks, spec("throughput"))
    assert view.state == "complete"
    (point,) = view.points
    assert point.load is None
    assert point.result["num_requests"] == 6
    assert point.result["total_num_tokens"] == 6 * (20 + 8)
    assert point.result["elapsed_time"] >= 0.08  # 8 tokens at 100 a second
    records = benchmarks.point(view.benchmark_id, 0).records
    assert most_at_once(records) == 6


def test_serving_measures_each_load_with_each_repeat(benchmarks):
    loads = (Load(request_rate=50), Load(max_concurrency=2))
    view = done(benchmarks, spec(loads=loads, repeats=2))
    assert [(point.load, point.repeat) for point in view.points] == [
        (loads[0], 0), (loads[0], 1), (loads[1], 0), (loads[1], 1),
    ]  # fmt: skip
    for point in view.points:
        assert (point.result["completed"], point.result["failed"]) == (6, 0)
        assert point.result["total_output_tokens"] == 48
        assert point.result["median_tpot_ms"] >= 10


def test_a_place_under_the_concurrency_is_waited_for_outside_the_latencies(benchmarks):
    view = done(benchmarks, spec(loads=(Load(max_concurrency=2),)))
    point = benchmarks.point(view.benchmark_id, 0)
    assert most_at_once(point.records) == 2
    waited = [record.queue_s for record in point.records]
    # an answer takes 80 ms: the last two wait for two others
    assert waited[2] >= 0.08
    assert waited[-1] >= 0.16
    ends = sorted(record.start_s + record.e2el_s for record in point.records)
    assert all(record.start_s >= end for record, end in zip(point.records[2:], ends, strict=False))


def test_requests_are_sent_when_the_rate_says(benchmarks):
    view = done(benchmarks, spec(loads=(Load(request_rate=40, arrivals="constant"),), num_warmups=0))
    starts = [record.start_s for record in benchmarks.point(view.benchmark_id, 0).records]
    # never before its time, but for the loop's clock, which counts in ms; a busy machine may be late
    assert all(start >= number / 40 - 0.003 for number, start in enumerate(starts, 1))


def test_latency_times_whole_batches(benchmarks):
    view = done(benchmarks, spec("latency", batch_size=3, num_iters=4, num_iters_warmup=1))
    (point,) = view.points
    assert len(point.result["latencies"]) == 4
    assert min(point.result["latencies"]) >= 0.08
    assert len(benchmarks.point(view.benchmark_id, 0).records) == 3 * 4


def test_the_file_of_a_point_is_read_back_as_it_was_measured(benchmarks):
    view = done(benchmarks, spec(goodput={"ttft": 1000}, num_warmups=0))
    point = benchmarks.point(view.benchmark_id, 0)
    assert view.points[0].result.items() <= point.result.items()
    assert [len(record.itls_s) for record in point.records] == [7] * 6
    document = json.loads(benchmarks.path(view.benchmark_id, 0).read_text())
    assert document["ttfts"] == [record.ttft_s for record in point.records]
    assert document["request_rate"] == "inf"
    assert document["workbench"]["environment"] == dict(view.environment)
    assert view.environment["model"] == "scripted"
    assert "generated_texts" not in document


def test_a_repeat_asks_other_prompts_and_none_comes_from_the_cache(at_once):
    view = done(at_once, spec(repeats=3, loads=(Load(), Load()), num_warmups=0))
    for point in view.points:
        records = at_once.point(view.benchmark_id, point.number).records
        assert [record.cached_tokens for record in records] == [0] * 6


def test_prefixes_that_a_workload_shares_are_told_as_cached(at_once):
    shared = SharedPrefixWorkload(num_prompts=8, num_prefixes=2, prefix_len=64, suffix_len=8, output_len=4)
    view = done(at_once, spec("throughput", workload=shared))
    records = at_once.point(view.benchmark_id, 0).records
    # the first of each group reads its 64 tokens, which are four blocks
    assert sorted(record.cached_tokens for record in records) == [0, 0] + [64] * 6


def test_an_engine_that_cannot_forget_gets_other_prompts_at_each_load(at_once, monkeypatch):
    seen = []

    async def reset(self) -> bool:
        return False

    complete = ScriptedEngine.complete

    async def seeing(self, request):
        seen.append(request.prompt)
        return await complete(self, request)

    monkeypatch.setattr(ScriptedEngine, "reset_prefix_cache", reset)
    monkeypatch.setattr(ScriptedEngine, "complete", seeing)
    done(at_once, spec("throughput", repeats=3, num_warmups=0))
    done(at_once, spec("latency", batch_size=2, num_iters=3, num_iters_warmup=2, seed=9))
    assert len(seen) == 18 + 10
    assert len(set(seen)) == len(seen)


def test_a_sweep_ends_at_the_knee(benchmarks, monkeypatch):
    """Two answers at a time, whatever is asked: no more tokens a second from two on."""
    gate = threading.local()
    stream = ScriptedEngine.stream

    async def two_at_a_time(self, request):
        import asyncio

        if not hasattr(gate, "places"):
            gate.places = asyncio.Semaphore(2)
        async with gate.places:
            async for item in stream(self, request):
                yield item

    monkeypatch.setattr(ScriptedEngine, "stream", two_at_a_time)
    workload = RandomWorkload(num_prompts=16, input_len=20, output_len=4)
    sweep = Sweep(over="max_concurrency", start=1, factor=2, least_gain=0.2, most_points=9)
    view = done(benchmarks, spec(workload=workload, sweep=sweep, num_warmups=0))
    assert [point.load.max_concurrency for point in view.points] == [1, 2, 4]


def test_a_sweep_ends_when_all_requests_are_in_flight(benchmarks, monkeypatch):
    """With 6 prompts, "16 at once" was "8 at once" again, and the knee came out wherever noise put it."""
    monkeypatch.setattr(knee, "knee", lambda points, least_gain: None)  # as if each step brought more
    workload = RandomWorkload(num_prompts=6, input_len=20, output_len=4)
    sweep = Sweep(over="max_concurrency", start=2, factor=2, most_points=5)
    view = done(benchmarks, spec(workload=workload, sweep=sweep, num_warmups=0))
    assert [point.load.max_concurrency for point in view.points] == [2, 4, 8]


def test_a_stop_keeps_what_was_answered(benchmarks):
    workload = RandomWorkload(num_prompts=40, input_len=20, output_len=10)
    loads = (Load(), Load(max_concurrency=2), Load(max_concurrency=4))
    benchmark_id = benchmarks.start(spec(workload=workload, loads=loads, num_warmups=0))

    def second_point_has_begun():
        view = benchmarks.view(benchmark_id)
        return view.points and view.progress and view.progress.total == 40 and view.progress.done > 3

    until(second_point_has_begun)
    benchmarks.stop(benchmark_id)
    view = benchmarks.wait(benchmark_id, 10)
    assert view.state == "stopped"
    assert [point.is_whole for point in view.points] == [True, False]
    completed = view.points[1].result["completed"]
    assert 3 < completed < 40
    point = benchmarks.point(benchmark_id, 1)
    assert len(point.records) == completed  # what was in flight counts nowhere
    assert not point.is_whole
    assert engine_of(benchmarks).stats().running == 0
    assert benchmarks._runtime.in_use() == {}


def test_a_stop_while_prompts_are_prepared_sends_nothing(at_once, monkeypatch):
    planning, go_on = threading.Event(), threading.Event()
    plan = workloads.plan

    def slow(*args):
        planning.set()
        assert go_on.wait(20)
        return plan(*args)

    monkeypatch.setattr(workloads, "plan", slow)
    benchmark_id = at_once.start(spec("throughput"))
    assert planning.wait(20)
    assert at_once.view(benchmark_id).progress.stage == "Preparing prompts"
    at_once.stop(benchmark_id)
    go_on.set()
    view = at_once.wait(benchmark_id, 20)
    assert (view.state, view.points) == ("stopped", ())
    assert engine_of(at_once).stats().prompt_tokens == 0


def test_progress_tells_the_point_at_work(benchmarks):
    workload = RandomWorkload(num_prompts=30, input_len=20, output_len=10)
    benchmark_id = benchmarks.start(spec(workload=workload, loads=(Load(max_concurrency=1),), num_warmups=0))
    until(lambda: (at := benchmarks.view(benchmark_id).progress) and at.done > 3 and at.samples)
    progress = benchmarks.view(benchmark_id).progress
    assert progress.stage == "1 at once"
    assert (progress.total, progress.failed) == (30, 0)
    assert progress.samples[-1].running == 1
    assert progress.samples[-1].ram_bytes > 1 << 20
    assert benchmarks.at_work() == benchmark_id
    assert benchmarks._runtime.in_use() == {"benchmarks": 1}
    with pytest.raises(BenchError, match="at work"):
        benchmarks.start(spec())
    with pytest.raises(BenchError, match="being measured"):
        benchmarks.delete(benchmark_id)
    benchmarks.close()
    assert benchmarks.view(benchmark_id).state == "interrupted"


def test_failed_requests_are_counted_and_the_others_measured(at_once, monkeypatch):
    stream = ScriptedEngine.stream
    asked = []

    async def refusing(self, request):
        asked.append(request)
        if len(asked) % 3 == 0:
            raise RequestRejected("Not this one.")
        async for item in stream(self, request):
            yield item

    monkeypatch.setattr(ScriptedEngine, "stream", refusing)
    view = done(at_once, spec(num_warmups=0))
    assert (view.points[0].result["completed"], view.points[0].result["failed"]) == (4, 2)
    errors = [record.error for record in at_once.point(view.benchmark_id, 0).records]
    assert errors.count("Not this one.") == 2


def test_when_nothing_is_answered_the_benchmark_says_why(at_once, monkeypatch):
    async def refusing(self, request):
        raise RequestRejected("Not one.")

    monkeypatch.setattr(ScriptedEngine, "complete", refusing)
    view = done(at_once, spec("throughput", repeats=3))
    assert view.state == "failed"
    assert "Not one." in view.message
    assert [point.result["failed"] for point in view.points] == [6]


def test_an_engine_that_dies_leaves_the_finished_points(at_once, monkeypatch):
    stream = ScriptedEngine.stream
    asked = []

    async def dying(self, request):
        asked.append(request)
        if len(asked) > 9:
            raise EngineDied("Its process ended: out of memory.")
        async for item in stream(self, request):
            yield item

    monkeypatch.setattr(ScriptedEngine, "stream", dying)
    view = done(at_once, spec(loads=(Load(), Load(max_concurrency=1)), num_warmups=0))
    assert view.state == "failed"
    assert "out of memory" in view.message
    assert [point.result["completed"] for point in view.points] == [6]
    assert at_once._runtime.in_use() == {}


def test_a_full_disk_ends_it_with_words_and_keeps_what_is_there(at_once, monkeypatch):
    sync = os.fsync
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 2:  # a point syncs its file and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    view = done(at_once, spec("throughput", repeats=3))
    assert view.state == "failed"
    assert "No space left" in view.message
    assert len(view.points) == 1
    assert at_once.point(view.benchmark_id, 0).result["num_requests"] == 6


def test_an_import_that_fills_the_disk_leaves_no_half(at_once, monkeypatch):
    """It stood in the list as complete, with the points that had found room."""
    first = done(at_once, spec("throughput", repeats=2)).benchmark_id
    data = b"\n".join(at_once.path(first, number).read_bytes() for number in (0, 1))
    sync, written = os.fsync, []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match="No space left"):
        at_once.import_file("two.json", data)
    assert [view.benchmark_id for view in at_once.recent()] == [first]
    assert [entry.name for entry in at_once._kept._folder.iterdir()] == [first]


@pytest.fixture
def full_catalogue(at_once, monkeypatch) -> threading.Event:
    """While it is set, the catalogue of `at_once` takes nothing."""
    monkeypatch.setattr(endings, "_TELL_AGAIN_S", 0.01)
    store, is_full = at_once._kept._store, threading.Event()
    execute = store.execute

    def refuse(statement):
        if is_full.is_set():
            raise WorkbenchError("The catalogue can't be written: database or disk is full.")
        execute(statement)

    monkeypatch.setattr(store, "execute", refuse)
    return is_full


def in_the_catalogue(benchmarks: Benchmarks, benchmark_id: str):
    """The benchmark as other processes read it."""
    return BenchStore(benchmarks._kept._store, benchmarks._runtime.settings).view(benchmark_id)


def test_a_benchmark_whose_end_finds_the_disk_full_does_not_read_as_running_for_ever(
    at_once, full_catalogue, monkeypatch
):
    end = at_once._kept.end

    def full_at_the_end(*values):
        full_catalogue.set()
        monkeypatch.setattr(at_once._kept, "end", end)
        end(*values)

    monkeypatch.setattr(at_once._kept, "end", full_at_the_end)
    view = done(at_once, spec("throughput", repeats=2))
    assert view.state == "complete" and "disk is full" in view.message
    assert len(view.points) == 2
    assert at_once.recent()[0].state == "complete"
    until(lambda: at_once.at_work() is None)
    assert in_the_catalogue(at_once, view.benchmark_id).state == "running"
    full_catalogue.clear()
    until(lambda: in_the_catalogue(at_once, view.benchmark_id).state == "complete")
    assert at_once.view(view.benchmark_id).message == ""
    assert at_once.point(view.benchmark_id, 1).result["num_requests"] == 6


@pytest.mark.parametrize("what", ["catalogue", "folder"])
def test_a_point_that_the_full_disk_did_not_take_is_kept_when_there_is_room(
    at_once, full_catalogue, monkeypatch, what
):
    sync = os.fsync

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    add_point = at_once._kept.add_point

    def full_at_the_last(benchmark_id, summary, text):
        if summary.number == 1 and not full_catalogue.is_set():
            full_catalogue.set()
            if what == "folder":
                monkeypatch.setattr(os, "fsync", full)
        add_point(benchmark_id, summary, text)

    monkeypatch.setattr(at_once._kept, "add_point", full_at_the_last)
    view = done(at_once, spec("throughput", repeats=2))
    assert view.state == "failed"
    assert ("disk is full" if what == "catalogue" else "No space left") in view.message
    assert [point.number for point in view.points] == [0]
    folder = at_once.path(view.benchmark_id, 0).parent  # where it is tried again all the time
    until(lambda: not list(folder.glob("*.partial")))
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(at_once._kept, "add_point", add_point)
    full_catalogue.clear()
    until(lambda: in_the_catalogue(at_once, view.benchmark_id).state == "failed")
    after = at_once.view(view.benchmark_id)
    assert after.message == view.message
    assert [point.number for point in after.points] == [0, 1]
    assert at_once.point(view.benchmark_id, 1).result["num_requests"] == 6
    assert done(at_once, spec()).state == "complete"


def test_a_benchmark_whose_end_is_not_written_can_be_deleted(at_once, full_catalogue, monkeypatch):
    end = at_once._kept.end
    monkeypatch.setattr(at_once._kept, "end", lambda *values: (full_catalogue.set(), end(*values)))
    view = done(at_once, spec("throughput"))
    until(lambda: at_once.at_work() is None)
    at_once.delete(view.benchmark_id)
    assert at_once.recent() == ()
    assert at_once._endings._unwritten == {}


def test_a_workbench_that_closes_while_the_disk_is_full_says_what_is_lost(
    at_once, full_catalogue, monkeypatch, caplog
):
    end = at_once._kept.end
    monkeypatch.setattr(at_once._kept, "end", lambda *values: (full_catalogue.set(), end(*values)))
    view = done(at_once, spec("throughput"))
    at_once.close()
    assert f"end of the benchmark {view.benchmark_id} is lost" in caplog.text


def test_what_the_engine_cannot_do_is_refused_before_anything_begins(at_once, monkeypatch):
    def with_info(**values) -> EngineInfo:
        return replace(engine_of(at_once).info, **values)

    with pytest.raises(ParameterError, match="one length"):
        at_once.start(spec("latency", workload=RandomWorkload(range_ratio=0.5)))
    monkeypatch.setattr(engine_of(at_once), "info", with_info(cannot={"tokens": "it tells no tokens."}))
    with pytest.raises(ParameterError, match="it tells no tokens"):
        at_once.start(spec())
    monkeypatch.setattr(engine_of(at_once), "info", with_info(cannot={}, cannot_params={"ignore_eos": "no."}))
    with pytest.raises(ParameterError, match="ignore_eos"):
        at_once.start(spec())
    assert done(at_once, spec(ignore_eos=False)).state == "complete"
    at_once._runtime.unload()
    until(lambda: at_once._runtime.status().phase == "empty")
    with pytest.raises(BenchError):
        at_once.start(spec())


def test_a_table_is_answered_by_the_adapters_that_its_rows_name(at_once, tmp_path, monkeypatch):
    adapters = Adapters(at_once._runtime.settings, at_once._kept._store)
    adapters.add("red", make_adapter(tmp_path / "red", base="scripted"))
    asked_by = []
    answer = ScriptedEngine.complete

    async def noted(self, request):
        asked_by.append(request.adapter and request.adapter.name)
        return await answer(self, request)

    monkeypatch.setattr(ScriptedEngine, "complete", noted)
    path = tmp_path / "rows.csv"
    path.write_text("text,by\ntea,red\nmilk,\n")
    prompt = PromptSpec(template="{{ text }}", adapter_column="by")
    table = TableWorkload(path=str(path), prompt=prompt, num_prompts=None, output_len=2)
    assert done(at_once, spec("throughput", workload=table, num_warmups=0)).state == "complete"
    assert asked_by == ["red", None]
    unable = replace(engine_of(at_once).info, cannot={"adapters": "It was loaded without LoRA."})
    monkeypatch.setattr(engine_of(at_once), "info", unable)
    with pytest.raises(ParameterError, match=r"asks for adapters\. It was loaded without LoRA"):
        at_once.start(spec("throughput", workload=table))


def test_prompts_that_do_not_fit_end_it_with_figures(at_once):
    view = done(at_once, spec(workload=RandomWorkload(num_prompts=2, input_len=8000, output_len=400)))
    assert view.state == "failed"
    assert "8,192" in view.message


def test_names_baseline_and_removal(at_once):
    first = done(at_once, spec(name="before")).benchmark_id
    second = done(at_once, spec()).benchmark_id
    assert [view.benchmark_id for view in at_once.recent()] == [second, first]
    assert [view.name for view in at_once.recent()] == ["Serving of scripted", "before"]
    at_once.rename(first, " after ")
    at_once.set_baseline(second)
    at_once.set_baseline(first)
    assert [(view.name, view.is_baseline) for view in at_once.recent()] == [
        ("Serving of scripted", False), ("after", True),
    ]  # fmt: skip
    at_once.set_baseline(None)
    assert not any(view.is_baseline for view in at_once.recent())
    folder = at_once.path(first, 0).parent
    at_once.delete(first)
    assert not folder.exists()
    assert [view.benchmark_id for view in at_once.recent()] == [second]


@pytest.mark.parametrize("name", ["../../workbench.sqlite", "", "nothing"])
def test_an_id_that_is_none_becomes_no_path(at_once, name):
    for call in (at_once.view, at_once.delete, at_once.set_baseline, at_once.environment):
        with pytest.raises(BenchError, match="no benchmark"):
            call(name)
    with pytest.raises(BenchError, match="no benchmark"):
        at_once.path(name, 0)
    with pytest.raises(BenchError):
        at_once.rename(name, "x")


def test_a_point_whose_file_is_gone_says_so(at_once):
    view = done(at_once, spec())
    with pytest.raises(BenchError, match="no point 1"):
        at_once.point(view.benchmark_id, 1)
    at_once.path(view.benchmark_id, 0).unlink()
    with pytest.raises(BenchError, match="can't be read"):
        at_once.point(view.benchmark_id, 0)


def test_a_file_of_ours_comes_back_as_it_went(at_once):
    measured = done(at_once, spec(name="serving", loads=(Load(max_concurrency=2), Load())))
    lines = [at_once.path(measured.benchmark_id, number).read_bytes() for number in (0, 1)]
    assert not any(b"\n" in line for line in lines)
    view = at_once.view(at_once.import_file("../folder/run.json", b"\n".join(lines)))
    assert (view.state, view.name, view.source) == ("complete", "serving", "run.json")
    assert [point.load for point in view.points] == [point.load for point in measured.points]
    for before, after in zip(measured.points, view.points, strict=True):
        assert before.result.items() <= after.result.items()
    imported = at_once.point(view.benchmark_id, 1)
    assert imported.records == at_once.point(measured.benchmark_id, 1).records


def test_a_file_that_is_no_result_leaves_nothing(at_once):
    with pytest.raises(BenchError):
        at_once.import_file("x.json", b"{}")
    assert at_once.recent() == ()


def test_a_killed_process_leaves_its_finished_points(settings, store):
    program = """
        from core.bench.runner import Benchmarks
        from core.bench.spec import BenchSpec, Load, RandomWorkload
        from core.runtime import Runtime
        from core.store import Store
        from core.settings import load_settings
        runtime = Runtime(load_settings())
        runtime.load()
        runtime.wait_ready(20)
        benchmarks = Benchmarks(runtime, Store(runtime.settings.catalogue_path), runtime.settings)
        print(benchmarks.start(BenchSpec(
            kind="serve", workload=RandomWorkload(num_prompts=8, input_len=8, output_len=10), num_warmups=0,
            loads=(Load(), Load(max_concurrency=1)), repeats=100,
        )), flush=True)
        benchmarks.wait(benchmarks.at_work())
    """
    environment = {**os.environ, "WORKBENCH_ENGINE": "scripted", "WORKBENCH_SCRIPTED_TOKENS_PER_S": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        benchmark_id = process.stdout.readline().strip()
        runtime = Runtime(settings)
        benchmarks = Benchmarks(runtime, store, settings)
        until(lambda: len(benchmarks.view(benchmark_id).points) >= 2)
        assert benchmarks.view(benchmark_id).state == "running"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    view = benchmarks.view(benchmark_id)
    assert view.state == "interrupted"
    for point in view.points:
        assert point.result.items() <= benchmarks.point(benchmark_id, point.number).result.items()
    files.read(benchmarks.path(benchmark_id, 0).read_bytes())
    benchmarks.delete(benchmark_id)
    runtime.close()


def test_the_machine_is_read_with_its_children_and_devices_that_tell_little(monkeypatch):
    burning = "block = b'x' * (64 << 20); print(flush=True)\nwhile True: pass"
    child = subprocess.Popen(
        [sys.executable, "-c", burning], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        processes = telemetry._Processes()
        time.sleep(0.3)  # this process rests, the child doesn't
        percent, resident = processes.read()
        assert percent > 5
        assert resident > 64 << 20
    finally:
        child.kill()
        child.communicate()
    processes.read()  # one that has ended breaks nothing

    def silent(_handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: SimpleNamespace(gpu=handle))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=handle << 20))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda handle: handle * 1000)
    assert telemetry._Gpus([40, 70]).read() == (70.0, 110 << 20, 110.0)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", silent)
    assert telemetry._Gpus([40, 70]).read() == (70.0, 110 << 20, None)
    assert telemetry._Gpus([]).read() == (None, None, None)
