"""`vllm bench serve` itself measures our engine's server: its file is read, and its figures are ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from vllm_server import vllm_server

from core.bench import files, metrics
from core.bench.spec import Load
from core.runtime import Runtime

pytestmark = pytest.mark.engine
COMMAND = Path(__file__).parents[1] / "benchmarks" / "vllm_command.py"


def bench(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, COMMAND, "bench", *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_file_by_vllm_bench_serve_says_what_we_would_have_said(engine_runtime: Runtime, tmp_path: Path):
    path = tmp_path / "served.json"
    model = engine_runtime.engine.spec.model
    with vllm_server(engine_runtime) as served:
        bench(
            "serve",
            *("--base-url", served.base_url.removesuffix("/v1"), "--endpoint", "/v1/completions"),
            *("--model", model, "--served-model-name", served.model, "--backend", "openai"),
            *("--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "8"),
            *("--num-prompts", "6", "--request-rate", "50", "--burstiness", "0.5", "--max-concurrency", "3"),
            *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99.9"),
            *("--goodput", "ttft:60000", "e2el:60000", "--num-warmups", "1", "--disable-tqdm"),
            *("--save-result", "--save-detailed", "--result-filename", str(path)),
        )
    contents = files.load(path.read_bytes())
    (point,) = contents.points
    assert contents.kind == "serve"
    assert contents.environment["engine"] == "openai"
    assert point.load == Load(request_rate=50, arrivals="gamma", burstiness=0.5, max_concurrency=3)
    assert [record.output_len for record in point.records] == [8] * 6
    assert all(record.ok and record.queue_s >= 0 for record in point.records)

    theirs = point.result
    ours = metrics.serve_result(
        point.records,
        theirs["duration"],
        percentiles=(50, 99.9),
        goodput={"ttft": 60_000, "e2el": 60_000},
    )
    compared = {name: value for name, value in ours.items() if name != "rtfx"}
    assert compared == {name: pytest.approx(theirs[name]) for name in compared}
    assert ours["request_goodput"] == pytest.approx(ours["request_throughput"]) != 0
