"""`python -m core bench tune|limit` as a user types it, on scripted engines of different speed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tuned import by_width

from core.bench import device_rates
from core.bench.device_rates import DeviceRates
from core.bench.records import Point, RequestRecord
from core.bench.store import BenchStore
from core.cli import app as cli
from core.saved_settings import SavedSettings
from core.settings import load_settings
from core.store import Store

ROOT = Path(__file__).parents[1]
FEW = ("--num-prompts", "4", "--input-len", "8", "--output-len", "8", "--num-warmups", "0")


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run `python -m core bench ARGS` in this process; 256 slots are slow, 512 five times as fast."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKBENCH_ENGINE", "scripted")
    before = signal.getsignal(signal.SIGTERM)
    by_width(monkeypatch, {256: 20, 512: 100})

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["core", "bench", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def test_a_search_prints_what_was_tried_and_keeps_the_best(here):
    code, out, err = here("tune", *FEW, "--settings", "max-num-seqs", "--minutes", "5", "--use")
    assert code == 0, err
    assert "Output tokens/s" in out and "settings of before" in out
    assert "Best of" in out and "Load with: --engine-arg max_num_seqs=512" in out
    assert "kept for the model" in err and "max_num_seqs 512" in err
    store = Store(load_settings().catalogue_path)
    assert SavedSettings(store).find("embedded").max_num_seqs == 512
    store.close()


def test_a_search_as_json_names_its_benchmarks(here):
    code, out, err = here("tune", *FEW, "--max-concurrency", "2", "--metric", "median_e2el_ms", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["best"] == {"max_num_seqs": 512} and found["is_confirmed"] and found["verdict"]["value"] < 0
    assert found["trials"][1]["benchmark_ids"]
    assert here("show", found["trials"][1]["benchmark_ids"][0])[0] == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--settings", "dtype"), "can't be searched"),
        (("--metric", "p99_ttft_ms"), "can't be searched for here"),
        (("--request-rate", "1,2"), "one load"),
    ],
)
def test_what_makes_no_sense_ends_with_one_line(here, args, words):
    code, out, err = here("tune", *FEW, *args)
    assert code == 2 and words in err.splitlines()[-1] and not out


def test_ctrl_c_ends_the_search_with_what_was_found(tmp_path):
    slow = {
        **os.environ, "WORKBENCH_HOME": str(tmp_path), "WORKBENCH_ENGINE": "scripted",
        "WORKBENCH_SCRIPTED_TOKENS_PER_S": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "core", "bench", "tune", *FEW, "--settings", "max_num_seqs"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=slow, **pipes)
    settings_path = tmp_path / "workbench.sqlite"
    try:
        for _ in range(600):
            if settings_path.exists() and list((tmp_path / "benchmarks").glob("*")):
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Nothing was measured" in out and "Traceback" not in err


def test_a_benchmark_is_held_against_the_limit_of_its_device(here, tmp_path):
    settings = load_settings()
    folder = settings.models_dir / "mine"
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    environment = {
        "engine": "vllm", "model": "mine", "device": "CPU", "cpu": "Some", "gpus": [], "dtype": "bfloat16",
        "settings": {"cpu_threads": 2}, "asked": {},
    }  # fmt: skip
    store = Store(settings.catalogue_path)
    kept = BenchStore(store, settings)
    number = kept.add(name="x", kind="throughput", spec=None, environment=environment, source="x.json")
    record = RequestRecord(input_len=8, output_len=11, start_s=0.0, ttft_s=0.1, e2el_s=1.1)
    keep(kept, number, record)
    store.close()
    code, _out, err = here("limit", number)
    assert code == 1 and "hasn't been measured here yet" in err and "--measure" in err
    rates = DeviceRates(
        device="Some, 2 threads", bandwidth=1e7, copy_bandwidth=1e7, read_bandwidth=1e7,
        flops={"float32": 1e12}, measured_at="2026-11-21T10:00:00+00:00",
    )  # fmt: skip
    device_rates._keep(settings, rates)
    code, out, err = here("limit", number)
    assert code == 0, err
    assert "Decode reaches" in out and "of what this memory can give: 10 of" in out
    found = json.loads(here("limit", number, "--json")[1])
    assert found["tokens_per_s"] == pytest.approx(10) and found["bound"] == "memory"


def keep(kept: BenchStore, number: str, record: RequestRecord) -> None:
    from core.bench import files, metrics
    from core.bench.records import PointSummary
    from core.bench.store import to_text

    result = metrics.throughput_result((record,), 1.1)
    point = Point(number=0, repeat=0, load=None, result=result, records=(record,))
    summary = PointSummary(number=0, repeat=0, load=None, result=result)
    kept.add_point(number, summary, to_text(files.to_json(point, None, {"model": "mine"})))
