"""Benchmarks of the real engine: what vLLM is asked, what its own benchmark counts, what a stop leaves."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.bench import files
from core.bench.runner import Benchmarks
from core.bench.spec import BenchSpec, ConversationWorkload, Load, RandomWorkload, SharedPrefixWorkload
from core.runtime import Runtime
from core.store import Store
from tests.in_flight import most_at_once
from tests.waiting import until

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(engine_runtime: Runtime, tmp_path: Path) -> Iterator[Benchmarks]:
    store = Store(tmp_path / "workbench.sqlite")
    settings = engine_runtime.settings.model_copy(update={"home": tmp_path})
    benchmarks = Benchmarks(engine_runtime, store, settings)
    yield benchmarks
    benchmarks.close()
    store.close()


def done(benchmarks: Benchmarks, spec: BenchSpec):
    view = benchmarks.wait(benchmarks.start(spec), 120)
    assert view.state == "complete", view.message
    return view


def test_serving_sees_every_token_of_answers_with_their_exact_lengths(benchmarks):
    workload = RandomWorkload(num_prompts=12, input_len=40, output_len=9, range_ratio=0.3)
    loads = (Load(max_concurrency=4), Load(request_rate=20))
    view = done(benchmarks, BenchSpec(kind="serve", workload=workload, loads=loads, num_warmups=2))
    for number in (0, 1):
        point = benchmarks.point(view.benchmark_id, number)
        assert point.result["completed"] == 12
        assert point.result["total_output_tokens"] == sum(record.output_len for record in point.records)
        assert len({record.output_len for record in point.records}) > 1
        for record in point.records:
            assert 28 <= record.input_len <= 52
            assert record.finish_reason == "length"
            assert record.cached_tokens == 0
            # a piece of an answer may hold several tokens when this process was busy
            assert 1 <= len(record.itls_s) <= record.output_len - 1
            assert record.ttft_s + sum(record.itls_s) == pytest.approx(record.e2el_s)
    first = benchmarks.point(view.benchmark_id, 0)
    assert most_at_once(first.records) == 4
    assert view.environment["engine"] == "vllm"
    assert view.environment["device"].startswith("CPU") or view.environment["gpus"]


def test_the_prefix_cache_is_told_apart_and_forgotten_between_points(benchmarks):
    """256 tokens are whole blocks, whatever size a block has."""
    workload = SharedPrefixWorkload(num_prompts=6, num_prefixes=2, prefix_len=256, suffix_len=8, output_len=2)
    loads = (Load(max_concurrency=1), Load(max_concurrency=1))
    spec = BenchSpec(kind="serve", workload=workload, loads=loads, num_warmups=0)
    view = done(benchmarks, spec)
    for number in (0, 1):
        records = benchmarks.point(view.benchmark_id, number).records
        assert sorted(record.cached_tokens for record in records) == [0, 0, 256, 256, 256, 256]


def test_samples_tell_what_the_engine_and_the_machine_do(benchmarks, engine_runtime):
    # long enough for some samples, on a CPU and on a GPU
    tokens = 32 if engine_runtime.engine.info.device.startswith("CPU") else 1000
    workload = RandomWorkload(num_prompts=24, input_len=64, output_len=tokens)
    view = done(benchmarks, BenchSpec(kind="throughput", workload=workload, num_warmups=1))
    point = benchmarks.point(view.benchmark_id, 0)
    busy = [sample for sample in point.samples if sample.running]
    assert max(sample.running for sample in busy) == 24
    assert max(sample.kv_cache_usage for sample in busy) > 0
    assert max(sample.cpu_percent for sample in busy) > 10
    assert busy[-1].output_tokens > busy[0].output_tokens
    assert busy[-1].ram_bytes > 500 << 20  # the engine's processes, too
    assert point.result["total_num_tokens"] == 24 * (64 + tokens)


def test_a_stop_frees_the_engine(benchmarks, engine_runtime):
    workload = RandomWorkload(num_prompts=64, input_len=16, output_len=60)
    benchmark_id = benchmarks.start(
        BenchSpec(kind="serve", workload=workload, loads=(Load(max_concurrency=8),), num_warmups=0)
    )
    until(lambda: (at := benchmarks.view(benchmark_id).progress) and at.done >= 8, 90)
    benchmarks.stop(benchmark_id)
    view = benchmarks.wait(benchmark_id, 30)
    assert view.state == "stopped"
    assert not view.points[0].is_whole
    assert 8 <= view.points[0].result["completed"] < 64
    until(lambda: engine_runtime.status().stats.running == 0)


def test_vllms_own_benchmark_counts_the_same_tokens_in_the_same_fields(benchmarks, engine_spec, tmp_path):
    data, output = tmp_path / "conversations.json", tmp_path / "result.json"
    talks = [
        (f"Tell me about the number {n}, please. " * (n + 1), f"The number {n} is a fine one. " * 2)
        for n in range(8)
    ]
    data.write_text(json.dumps(
        [{"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]}
         for asked, answered in talks]
    ))  # fmt: skip
    workload = ConversationWorkload(path=str(data), num_prompts=8)
    view = done(benchmarks, BenchSpec(kind="throughput", workload=workload, num_warmups=0))
    command = [
        sys.executable, ROOT / "benchmarks" / "vllm_command.py", "bench", "throughput",
        "--dataset-name", "sharegpt", "--dataset-path", data, "--num-prompts", "8", "--output-json", output,
        "--model", engine_spec.model, "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8",
        *(() if view.environment["gpus"] else ("--kv-cache-memory-bytes", str(100 << 20))),
    ]  # fmt: skip
    ended = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    theirs = json.loads(output.read_text())
    ours = json.loads(benchmarks.path(view.benchmark_id, 0).read_text())
    assert ours.keys() - {"workbench"} == theirs.keys() | {"model_id"}
    for name in ("num_requests", "total_num_tokens"):
        assert ours[name] == theirs[name]
    kind, (point,) = files.read(output.read_bytes())
    assert (kind, point.result["total_num_tokens"]) == ("throughput", ours["total_num_tokens"])
    imported = benchmarks.view(benchmarks.import_file("result.json", output.read_bytes()))
    assert imported.points[0].result["tokens_per_second"] == theirs["tokens_per_second"]
