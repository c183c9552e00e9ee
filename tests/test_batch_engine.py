"""Batch runs on the real engine: real answers, a real stop, a real kill."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import batch_runs
import psutil
import pytest
from batch_runs import exported, finish, read_csv
from waiting import until

from core.run_spec import Instructions, OutputSpec
from core.store import Store
from core.types import Message, Request

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "reviews.csv"
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def jobs(engine_runtime):
    with batch_runs.opened(engine_runtime) as batches:
        yield batches.jobs


def test_a_table_gets_real_answers_with_the_engines_own_counts(jobs, engine_runtime, tmp_path):
    template = "Is this review of {{ product }} positive? Answer yes or no. {{ review }}"
    asked = Instructions(template=template, system="Be brief.", params={"temperature": 0, "max_tokens": 8})
    run = jobs.stage(EXAMPLE, instructions=asked)
    progress = finish(jobs, run, timeout_s=120)
    assert (progress.counts.ok, progress.generated) == (40, 40)
    run.export(tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    engine = engine_runtime.engine
    for row in rows:
        prompt = template.replace("{{ product }}", row["product"]).replace("{{ review }}", row["review"])
        chat = [Message("system", "Be brief."), Message("user", prompt)]
        (token_ids,) = engine.encode(engine.render_chat([chat]))
        assert int(row["answer_prompt_tokens"]) == len(token_ids)
        assert 1 <= int(row["answer_output_tokens"]) <= 8
        assert row["answer_finish_reason"] in ("stop", "length")
        assert row["answer"].strip()


def test_a_choice_is_one_of_the_list_with_the_models_own_probabilities(jobs, tmp_path):
    asked = Instructions(
        template="Is this review positive or negative? {{ review }}",
        params={"temperature": 0, "structured_outputs": {"choice": ["positive", "negative"]}, "logprobs": 0},
        output=OutputSpec(choice_probabilities=True, logprobs=True),
    )
    run = jobs.stage(EXAMPLE, limit=12, instructions=asked)
    finish(jobs, run, timeout_s=120)
    rows = exported(run, tmp_path)
    assert len({row["answer_p_positive"] for row in rows}) > 6  # they hang on the row
    for row in rows:
        assert row["answer"] in ("positive", "negative")
        assert row["answer_valid"] is True
        assert row["answer_p_positive"] + row["answer_p_negative"] == pytest.approx(1)
        assert row["answer_logprob"] < 0


def test_a_schemas_fields_come_back_as_typed_columns(jobs, tmp_path):
    schema = {
        "type": "object",
        "properties": {"score": {"type": "integer"}, "label": {"enum": ["good", "bad"]}},
        "required": ["score", "label"],
        "additionalProperties": False,
    }
    params = {"temperature": 0, "max_tokens": 40, "structured_outputs": {"json": schema}}
    asked = Instructions(template="Rate this review from 1 to 5 as JSON. {{ review }}", params=params)
    run = jobs.stage(EXAMPLE, limit=6, instructions=asked)
    finish(jobs, run, timeout_s=120)
    valid = [row for row in exported(run, tmp_path) if row["answer_valid"]]
    assert len(valid) >= 4  # a small model may count to the end of its tokens
    assert all(isinstance(row["answer_score"], int) for row in valid)
    assert {row["answer_label"] for row in valid} <= {"good", "bad"}


def test_several_answers_and_turns_of_a_real_model(jobs, tmp_path):
    asked = Instructions(template="Name a colour for {{ product }}.", params={"n": 3, "max_tokens": 12})
    run = jobs.stage(EXAMPLE, limit=4, instructions=asked)
    finish(jobs, run, timeout_s=120)
    for row in exported(run, tmp_path):
        assert len({row["answer"], row["answer_2"], row["answer_3"]}) > 1
        assert row["answer_output_tokens"] > 12  # of all three
    asked = Instructions(
        template="I bought a {{ product }}. I think: {{ review }}",
        turns=("What did I buy?",),
        params={"temperature": 0, "max_tokens": 24},
    )
    run = jobs.stage(EXAMPLE, limit=4, instructions=asked)
    assert finish(jobs, run, timeout_s=120).generated == 8
    rows = exported(run, tmp_path)
    assert all(row["answer_turn_1"].strip() and row["answer"].strip() for row in rows)
    # a small model may say the same twice, but not in every row
    assert any(row["answer"] != row["answer_turn_1"] for row in rows)


def test_rows_with_equal_beginnings_are_served_from_the_prefix_cache(jobs, tmp_path):
    """Twelve long texts, four questions to each, shuffled: the engine itself says what it had already."""
    texts = [f"Text {n}. " + " ".join(f"word{n} {step}" for step in range(150)) for n in range(12)]
    rows = [(f"Question {number}?", text) for number in range(4) for text in texts]
    table = tmp_path / "t.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "text"])
        writer.writerows(rows)
    asked = Instructions(template="{{ text }} {{ question }}", params={"temperature": 0, "max_tokens": 2})
    run = jobs.stage(table, instructions=asked)
    finish(jobs, run, timeout_s=120)
    session = run.spec.sessions[-1]
    assert session.cached_tokens > 0.6 * session.prompt_tokens
    assert [row["question"] for row in exported(run, tmp_path)] == [question for question, _text in rows]


def long_run(jobs, tmp_path):
    """A run that takes the engine a good while, at work."""
    table = tmp_path / "long.csv"
    table.write_text("n\n" + "".join(f"{n}\n" for n in range(64)), encoding="utf-8")
    params = {"max_tokens": 400, "ignore_eos": True}
    run = jobs.stage(table, instructions=Instructions(template="Count from {{ n }}.", params=params))
    jobs.start(run.run_id)
    return run


def test_stop_aborts_the_requests_in_the_engine(jobs, engine_runtime, tmp_path):
    run = long_run(jobs, tmp_path)
    until(lambda: engine_runtime.status().stats.running >= 16)
    jobs.stop(run.run_id)
    progress = jobs.wait(run.run_id, timeout_s=20)
    assert progress.state == "stopped"
    assert progress.counts.done < 64
    # the engine reports a step late: what it is asked next shows that the slots are free
    request = Request(id="after-stop", prompt="Hello", params={"max_tokens": 2})
    engine_runtime.run(engine_runtime.engine.complete(request))
    until(lambda: engine_runtime.status().stats.running == 0, timeout_s=10)
    jobs.delete(run.run_id)


def test_a_chat_is_answered_while_a_batch_fills_the_engine(jobs, engine_runtime, tmp_path):
    run = long_run(jobs, tmp_path)
    until(lambda: engine_runtime.status().stats.running >= 32)
    request = Request(id="chat-meanwhile", prompt="Hello", params={"max_tokens": 4})
    completion = engine_runtime.run(engine_runtime.engine.complete(request))
    assert completion.output_tokens > 0
    assert jobs.progress(run.run_id).state == "running"
    assert jobs.progress(run.run_id).counts.done < 32
    jobs.stop(run.run_id)
    jobs.wait(run.run_id, timeout_s=20)
    jobs.delete(run.run_id)


def test_kill_9_leaves_no_engine_and_resume_gives_every_row_once(engine_spec, tmp_path):
    home, out, table = tmp_path / "home", tmp_path / "out.csv", tmp_path / "table.csv"
    table.write_text("id,n\n" + "".join(f"{n:03d},{n}\n" for n in range(40)), encoding="utf-8")
    environment = {
        **os.environ,
        "WORKBENCH_HOME": str(home),
        "WORKBENCH_KV_CACHE_MEMORY_BYTES": str(engine_spec.kv_cache_memory_bytes),
        "WORKBENCH_MAX_NUM_SEQS": "4",
    }
    command = [sys.executable, "-m", "core", "batch", "-o", str(out), "--json"]
    first = [*command, str(table), "--template", "Count from {{ n }}.", "--model", engine_spec.model]
    process = subprocess.Popen(
        [*first, "--param", "max_tokens=24", "--param", "ignore_eos=true"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: done_rows(home) >= 4, timeout_s=200)
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("EngineCore" in " ".join(child.cmdline()) for child in children)
    finally:
        process.kill()
        process.communicate()
    _gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"left behind: {alive}"
    kept = done_rows(home)
    assert 4 <= kept < 40
    (folder,) = (home / "runs").iterdir()
    resumed = subprocess.run(
        [*command, "--resume", folder.name],
        cwd=ROOT, env=environment, capture_output=True, check=False, timeout=250,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr.decode()
    summary = json.loads(resumed.stdout.splitlines()[-1])
    assert (summary["rows"], summary["ok"], summary["errors"]) == (40, 40, 0)
    assert summary["generated"] <= 40 - kept
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"{n:03d}" for n in range(40)]
    assert {row["answer_output_tokens"] for row in rows} == {"24"}


def done_rows(home):
    """Rows done of the only run of the workspace, 0 before there is one."""
    if not (home / "workbench.sqlite").exists():
        return 0
    store = Store(home / "workbench.sqlite")
    try:
        return sum(record.done for record in store.runs())
    finally:
        store.close()
