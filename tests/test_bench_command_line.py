"""A benchmark as a command line: typed in, it measures the same."""

import json
import shlex
import signal
import sys

import pytest

from core.bench.command_line import command_line
from core.bench.spec import (
    BenchSpec,
    ConversationWorkload,
    Load,
    RandomWorkload,
    SharedPrefixWorkload,
    Sweep,
    TableWorkload,
)
from core.bench.store import BenchStore
from core.cli import app as cli
from core.run_spec import ExampleSpec, PromptSpec
from core.settings import load_settings
from core.store import Store

FEW = {"num_prompts": 3, "input_len": 9, "output_len": 4}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Type a line in; gives the specification of the benchmark that it made."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKBENCH_ENGINE", "scripted")
    before = signal.getsignal(signal.SIGTERM)

    def run(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line)[2:])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        settings = load_settings()
        store = Store(settings.catalogue_path)
        try:
            return BenchStore(store, settings).recent(1)[0].spec
        finally:
            store.close()

    yield run
    signal.signal(signal.SIGTERM, before)


def specs():
    random = RandomWorkload(**FEW, range_ratio=0.5, prefix_len=2)
    rates = tuple(Load(request_rate=rate, max_concurrency=2, arrivals="constant") for rate in (500.0, None))
    bursts = tuple(Load(request_rate=900.5, arrivals="gamma", burstiness=0.25) for _ in range(1))
    return [
        BenchSpec(kind="throughput", workload=random, repeats=2, seed=7, name="two words' worth"),
        BenchSpec(kind="throughput", workload=RandomWorkload(**FEW), params={"temperature": 0.5, "top_k": 5},
                  ignore_eos=False, num_warmups=0),
        BenchSpec(kind="serve", workload=RandomWorkload(**FEW), loads=rates, metric_percentiles=(50.0, 99.9),
                  goodput={"ttft": 500.0, "tpot": 12.5}, percentile_metrics=("ttft", "e2el")),
        BenchSpec(kind="serve", workload=RandomWorkload(**FEW), loads=bursts),
        BenchSpec(kind="serve", workload=RandomWorkload(**FEW),
                  sweep=Sweep(over="max_concurrency", start=1, factor=3, least_gain=0.2, most_points=2)),
        BenchSpec(kind="latency", workload=RandomWorkload(input_len=6, output_len=3), batch_size=2,
                  num_iters=3, num_iters_warmup=1),
        BenchSpec(kind="throughput", workload=SharedPrefixWorkload(num_prompts=4, prefix_len=8, suffix_len=3,
                  num_prefixes=2, output_len=2)),
    ]  # fmt: skip


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: f"{spec.kind}-{spec.workload.kind}")
def test_the_line_measures_the_same(measured, spec):
    assert measured(command_line(spec)) == spec


def test_files_are_named(measured, tmp_path):
    table, talks = tmp_path / "my rows.csv", tmp_path / "talks.json"
    table.write_text("word\napple\npear\n")
    words = "Tell me of the long rivers of Europe and the seas that they flow to, please."
    turns = [{"from": "human", "value": words}, {"from": "gpt", "value": words}]
    talks.write_text(json.dumps([{"conversations": turns}]))
    prompt = PromptSpec(template='Is "{{ word }}" a fruit?', system="Be short.")
    for workload in (
        TableWorkload(path=str(table), prompt=prompt, num_prompts=2, output_len=3),
        ConversationWorkload(path=str(talks), num_prompts=1, output_len=5),
    ):
        spec = BenchSpec(kind="throughput", workload=workload)
        assert measured(command_line(spec)) == spec


def test_what_rows_say_themselves_is_named(measured, tmp_path):
    table, lines = tmp_path / "rows.csv", tmp_path / "lines.jsonl"
    table.write_text("word,most\napple,3\npear,4\n")
    asked = {"messages": [{"role": "user", "content": "apple"}], "max_tokens": 3}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    lines.write_text(json.dumps(line))
    by_column = PromptSpec(template="{{ word }}", param_columns={"max_tokens": "most"}, adapter="base")
    for path, prompt in ((table, by_column), (lines, PromptSpec(mode="openai"))):
        workload = TableWorkload(path=str(path), prompt=prompt, num_prompts=2)
        spec = BenchSpec(kind="throughput", workload=workload)
        assert measured(command_line(spec)) == spec
    by_adapter = PromptSpec(template="{{ word }}", adapter="red", adapter_column="by")
    workload = workload.model_copy(update={"prompt": by_adapter})
    assert "--adapter red --adapter-column by" in command_line(
        BenchSpec(kind="throughput", workload=workload)
    )


def test_what_the_command_cannot_say_is_not_said():
    example = ExampleSpec(user="a", assistant="b")
    table = {"path": "rows.csv", "num_prompts": 2}
    with_examples = TableWorkload(prompt=PromptSpec(template="{{ a }}", examples=(example,)), **table)
    every_row = TableWorkload(prompt=PromptSpec(template="{{ a }}"), path="rows.csv", num_prompts=None)
    assert command_line(BenchSpec(kind="throughput", workload=with_examples)) is None
    assert command_line(BenchSpec(kind="throughput", workload=every_row)) is None
    no_grid = (Load(request_rate=1, max_concurrency=2), Load(request_rate=2, max_concurrency=1))
    assert command_line(BenchSpec(kind="serve", loads=no_grid)) is None
