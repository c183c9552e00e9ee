"""`python -m core bench` as a user types it: tables, files, options of vllm bench, Ctrl-C, clear errors."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.bench import files
from core.bench.command_line import command_line
from core.bench.spec import BenchSpec, Load, RandomWorkload, SharedPrefixWorkload, Sweep, TableWorkload
from core.cli import app as cli
from core.cli import bench as cli_bench
from core.run_spec import PromptSpec

ROOT = Path(__file__).parents[1]
FEW = ("--num-prompts", 4, "--input-len", 10, "--output-len", 5, "--num-warmups", 1)


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run `python -m core bench ARGS` in this process; gives exit code, stdout and stderr."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKBENCH_ENGINE", "scripted")
    before = signal.getsignal(signal.SIGTERM)

    def run(*args):
        monkeypatch.setattr(sys, "argv", command(*args)[2:])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def command(*args):
    return [sys.executable, "-m", "core", "bench", *map(str, args)]


def figures(output):
    return {
        label.strip(): value.strip()
        for label, _, value in (line.partition(": ") for line in output.splitlines())
        if value
    }


def test_throughput_prints_a_table_and_writes_what_vllm_would(here, tmp_path):
    output = tmp_path / "result.json"
    code, out, err = here("throughput", *FEW, "--output-json", output)
    assert code == 0, err
    shown = figures(out)
    assert shown["Successful requests"] == "4"
    assert shown["Total input tokens"] == "40"
    assert shown["Total generated tokens"] == "20"
    result = json.loads(output.read_text())
    assert (result["num_requests"], result["total_num_tokens"]) == (4, 60)


def test_serving_measures_a_point_for_each_load(here, tmp_path):
    output = tmp_path / "result.jsonl"
    code, out, err = here(
        "serve", *FEW, "--request-rate", "50,inf", "--max-concurrency", 2, "--repeats", 2, "-o", output,
        "--goodput", "ttft:500", "tpot:50", "--metric-percentiles", "50,99.9",
        "--percentile-metrics", "ttft,itl",
    )  # fmt: skip
    assert code == 0, err
    kind, points = files.read(output.read_bytes())
    assert kind == "serve"
    assert [(point.load.request_rate, point.load.max_concurrency, point.repeat) for point in points] == [
        (50, 2, 0), (50, 2, 1), (None, 2, 0), (None, 2, 1),
    ]  # fmt: skip
    assert out.count("Serving Benchmark Result") == 4
    assert "P99.9 TTFT (ms)" in out
    assert "P99 TTFT" not in out
    assert "TPOT (ms)" not in out
    assert "Request goodput (req/s)" in out


def test_latency_times_batches(here):
    code, out, err = here("latency", "--batch-size", 2, "--num-iters", 3, "--num-iters-warmup", 1, "--json")
    assert code == 0, err
    (point,) = json.loads(out)["points"]
    assert len(point["result"]["latencies"]) == 3
    assert point["result"]["total_output_tokens"] == 3 * 2 * 128


def test_a_sweep_says_where_its_knee_is(here):
    code, out, err = here("serve", *FEW, "--sweep", "max-concurrency", "--sweep-points", 3, "--sweep-gain", 0)
    assert code == 0, err
    assert "knee" in err
    assert "1 at once" in out


def test_a_table_is_asked_under_its_template(here, tmp_path):
    table = tmp_path / "in.csv"
    table.write_text("text\n" + "\n".join(f"film number {n}" for n in range(9)), encoding="utf-8")
    asked = ("serve", "--dataset-name", "table", "--dataset-path", table, "--num-prompts", 5)
    code, out, err = here(*asked, "--template", "Is it good? {{ text }}", "--param", "max_tokens=7", "--json")
    assert code == 0, err
    result = json.loads(out)["points"][0]["result"]
    assert result["completed"] == 5
    assert 0 < result["total_output_tokens"] <= 35
    code, _out, err = here(*asked)
    assert code == 2
    assert "--template is missing. The table's columns: text" in err


def test_a_result_is_done_again_from_its_file(here, tmp_path):
    output = tmp_path / "result.json"
    here("serve", *FEW, "--max-concurrency", "1,2", "--seed", 5, "--name", "before", "-o", output)
    code, out, err = here("run", output, "--name", "after", "--json")
    assert code == 0, err
    again = json.loads(out)
    assert again["name"] == "after"
    assert [point["load"]["max_concurrency"] for point in again["points"]] == [1, 2]
    assert again["points"][0]["result"]["total_input_tokens"] == 40
    output.write_text("[]")
    assert "holds no specification" in here("run", output)[2]
    output.write_text('{"kind": "serve", "speed": 3}')
    assert "--speed: Extra inputs" in here("run", output)[2]
    output.write_text("speed")
    assert "can't be read" in here("run", output)[2]


@pytest.mark.parametrize(
    "spec",
    [
        BenchSpec(kind="throughput"),
        BenchSpec(kind="throughput", params={"temperature": 0.0, "top_k": 5, "stop": ["end"]}, name="a b"),
        BenchSpec(
            kind="serve",
            loads=(Load(request_rate=0.5, max_concurrency=8), Load(request_rate=2, max_concurrency=8)),
            goodput={"ttft": 500, "e2el": 9000.5}, percentile_metrics=("ttft",),
            metric_percentiles=(50, 99.9), num_warmups=0, repeats=3, seed=7, ignore_eos=False,
        ),
        BenchSpec(kind="serve", loads=(Load(max_concurrency=1), Load(max_concurrency=16))),
        BenchSpec(kind="serve", loads=(Load(request_rate=3, arrivals="gamma", burstiness=0.25),)),
        BenchSpec(kind="serve", loads=(Load(request_rate=3, arrivals="constant"),)),
        BenchSpec(kind="serve", sweep=Sweep(over="request_rate", start=0.5, factor=1.5, most_points=3)),
        BenchSpec(kind="latency", workload=RandomWorkload(input_len=3, output_len=4), batch_size=2),
        BenchSpec(kind="serve", workload=SharedPrefixWorkload(num_prompts=20, suffix_len=9, num_prefixes=3)),
        BenchSpec(kind="throughput", workload=RandomWorkload(num_prompts=9, range_ratio=0.5, prefix_len=7)),
        BenchSpec(
            kind="throughput",
            workload=TableWorkload(
                path=str(ROOT / "examples" / "reviews.csv"), num_prompts=3,
                prompt=PromptSpec(template="Is 'it' good? {{ text }}", system="Be short."),
            ),
        ),
    ],
    ids=lambda spec: f"{spec.kind}-{spec.workload.kind}",
)  # fmt: skip
def test_a_specification_and_its_command_line_ask_the_same(spec, here, monkeypatch):
    asked = []
    monkeypatch.setattr(cli_bench, "_measure", lambda spec, *_others: asked.append(spec))
    words = shlex.split(command_line(spec))
    assert words[:4] == ["python", "-m", "core", "bench"]
    code, _out, err = here(*words[4:])
    assert code == 0, err
    assert asked == [spec]


def test_list_and_show_find_what_was_measured(here, tmp_path):
    here("throughput", *FEW, "--name", "first try")
    code, out, err = here("list", "--json")
    assert code == 0, err
    (found,) = map(json.loads, out.splitlines())
    assert (found["name"], found["state"]) == ("first try", "complete")
    code, out, err = here("show", found["benchmark_id"], "-o", tmp_path / "again.json")
    assert "Throughput Benchmark Result" in out
    assert files.read((tmp_path / "again.json").read_bytes())[0] == "throughput"
    code, _out, err = here("show", "nothing")
    assert code == 1
    assert "There is no benchmark 'nothing'" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("serve", "--goodput", "speed:3"), "NAME:MILLISECONDS"),
        (("serve", "--request-rate", "fast"), "--request-rate"),
        (("serve", "--request-rate", "0"), "above 0"),
        (("serve", "--max-concurrency", "1.5"), "whole number"),
        (("serve", "--percentile-metrics", "speed"), "no metric 'speed'"),
        (("serve", "--metric-percentiles", "101"), "between 0 and 100"),
        (("serve", "--arrivals", "poisson", "--burstiness", "2"), "--burstiness"),
        (("serve", "--sweep", "prompts"), "request_rate or max_concurrency"),
        (("serve", "surplus"), "surplus"),
        (("throughput", "--dataset-name", "poems"), "prefix_repetition"),
        (("throughput", "--dataset-name", "sharegpt"), "--dataset-path is missing"),
        (("throughput", "--suffix-len", "4"), "--suffix-len: not for the dataset random"),
        (("throughput", "--template", "x"), "--template: not for the dataset random"),
        (("throughput", "--param", "temprature=1"), "temperature"),
        (("throughput", "-o", "/nowhere/x.json"), "does not exist"),
        (("throughput", "--input-len", "9000"), "8,192"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(here, args, words):
    code, _out, err = here(*args)
    assert code != 0
    said = [line for line in err.splitlines() if "rror" in line]
    assert words in " ".join(said), err
    assert "Traceback" not in err


def test_options_of_vllm_bench_mean_the_same_here(here):
    code, out, err = here(
        "throughput", "--random-input-len", 12, "--random-output-len", 3, "--random-range-ratio", 0,
        "--random-prefix-len", 32, "--num-prompts", 3, "--seed", 4, "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)["points"][0]["result"]
    assert result["total_input_tokens"] == 3 * (32 + 12)
    assert result["total_output_tokens"] == 9


@pytest.fixture
def slow(tmp_path):
    return {
        **os.environ,
        "WORKBENCH_HOME": str(tmp_path / "home"),
        "WORKBENCH_ENGINE": "scripted",
        "WORKBENCH_SCRIPTED_TOKENS_PER_S": "100",
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done(tmp_path, slow, number):
    args = ("serve", "--num-prompts", 200, "--input-len", 8, "--output-len", 8, "--num-warmups", 0,
            "--max-concurrency", "200,2", "-o", tmp_path / "part.json")  # fmt: skip
    process = subprocess.Popen(
        command(*args), cwd=ROOT, env=slow, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in process.stderr:
        if line.startswith("2 at once"):
            break
    process.send_signal(number)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped; " in err
    assert "python -m core bench show" in err
    assert "Traceback" not in err
    _kind, points = files.read((tmp_path / "part.json").read_bytes())
    assert points[0].is_whole
    assert points[0].result["completed"] == 200


def test_help_names_every_command():
    done = subprocess.run(command("--help"), cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("throughput", "serve", "latency", "run", "list", "show"):
        assert f"  {name} " in done.stdout
