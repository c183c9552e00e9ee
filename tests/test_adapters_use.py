"""Adapters where answers are asked for: chats, comparisons, batches. On the scripted engine."""

import json
from dataclasses import replace

import pytest
from batch_runs import exported, finish, write_csv
from chatting import begin, ended
from test_adapters import make_adapter
from typer.testing import CliRunner
from waiting import until

from core import revisions
from core.adapters.registry import Adapters
from core.chat import Chats
from core.cli import app as cli
from core.command_line import command_line
from core.comparing.cell import Place
from core.comparing.rows import sample_file
from core.comparing.runner import Comparisons
from core.comparing.spec import SetSpec, grid, read_spec, to_prompt_spec
from core.conversations import ChatOptions
from core.errors import ModelError, ParameterError, TemplateError, UnknownColumn
from core.planning.forecast import forecast
from core.run_spec import Instructions, PromptSpec


@pytest.fixture
def adapters(batches, tmp_path):
    """With the adapters red and blue."""
    adapters = Adapters(batches.runtime.settings, batches.store)
    for name in ("red", "blue"):
        adapters.add(name, make_adapter(tmp_path / name))
    return adapters


@pytest.fixture
def jobs(batches, adapters):
    return batches.jobs


def table(tmp_path, rows, columns=("text", "voice")):
    return write_csv(tmp_path / "table.csv", columns, rows)


# -- chats ------------------------------------------------------------------------


def test_each_conversation_has_its_adapter(batches, adapters):
    runtime, store, _jobs = batches
    chats = Chats(runtime, store)
    found = {}
    for name in (None, "red", "BLUE", "base"):
        conversation = begin(chats, options=ChatOptions(adapter=name))
        chats.send(conversation, "Hello", {"temperature": 0})
        found[name] = ended(chats, conversation)
    assert found[None].content == found["base"].content
    assert len({answer.content for answer in found.values()}) == 3
    assert "adapter" not in found[None].details
    assert found["BLUE"].details["adapter"] == "blue"
    kept = begin(chats, options=ChatOptions(adapter="red"))
    adapters.remove("red")
    with pytest.raises(ModelError, match="no adapter 'red'"):
        chats.send(kept, "Hello", {})
    assert chats.conversations.messages(kept) == []
    chats.close()


# -- comparisons --------------------------------------------------------------------


def test_sets_differ_by_adapter(batches, adapters):
    runtime, store, _jobs = batches
    comparisons = Comparisons(runtime, store)
    sets = grid(SetSpec(name="-", params={"temperature": 0}), {"adapter": ["base", "red", "blue"]})
    assert [one.name for one in sets] == ["adapter base", "adapter red", "adapter blue"]
    spec = read_spec({"prompts": [{"messages": "Hello"}], "sets": [one.model_dump() for one in sets]})
    comparison_id = comparisons.start(spec)
    view = until(lambda: not (now := comparisons.view(comparison_id)).is_live and now)
    assert view.counts == {"complete": 3}
    texts = [view.cells[Place(0, place, 0)].text for place in range(3)]
    assert len(set(texts)) == 3
    assert view.cells[Place(0, 1, 0)].details["adapter"] == "red"
    unknown = read_spec({"prompts": [{"messages": "Hello"}], "sets": [{"name": "x", "adapter": "green"}]})
    with pytest.raises(ModelError, match="no adapter 'green'"):
        comparisons.start(unknown)
    comparisons.close()


def test_a_set_takes_its_adapter_to_the_batch():
    spec = read_spec({"prompts": [{"messages": "Hello"}], "sets": [{"name": "x", "adapter": "red"}]})
    prompt, _params = to_prompt_spec(spec.sets[0], spec.prompts[0])
    assert prompt.adapter == "red"


def test_prompts_of_a_table_bring_no_adapters(tmp_path):
    path = table(tmp_path, [["a", "red"]])
    with pytest.raises(TemplateError, match="come from its sets"):
        sample_file(path, PromptSpec(template="{{ text }}", adapter_column="voice"), 1)


# -- batches --------------------------------------------------------------------------


def test_a_column_names_each_rows_adapter(jobs, batches, tmp_path):
    rows = [["a", "red"], ["a", "blue"], ["a", ""], ["a", "base"], ["a", " RED "], ["a", "green"]]
    asked = Instructions(
        template="{{ text }}", adapter="blue", adapter_column="voice", params={"temperature": 0}
    )
    run = jobs.stage(table(tmp_path, rows), instructions=asked)
    expected = forecast(run, batches.runtime.engine, batches.store)
    assert (expected.requests, expected.unusable) == (6, 1)
    progress = finish(jobs, run)
    assert (progress.counts.ok, progress.counts.errors) == (5, 1)
    red, blue, empty, base, spaced, unknown = exported(run, tmp_path)
    assert blue["answer"] == empty["answer"] and red["answer"] == spaced["answer"]
    assert len({red["answer"], blue["answer"], base["answer"]}) == 3
    assert "There is no adapter 'green'. Registered: blue, red." in unknown["answer_error"]


def test_rows_that_differ_by_adapter_alone_share_no_answer(jobs, tmp_path):
    rows = [[f"text {n % 2}", voice] for n, voice in enumerate(["red", "red", "blue", "blue", "red", "blue"])]
    asked = Instructions(template="{{ text }}", adapter_column="voice", params={"temperature": 0})
    run = jobs.stage(table(tmp_path, rows), instructions=asked)
    progress = finish(jobs, run)
    assert (progress.counts.ok, progress.counts.shared) == (6, 2)
    assert len({row["answer"] for row in exported(run, tmp_path)}) == 4


def test_rows_of_one_adapter_are_asked_together(jobs, tmp_path):
    long = "A document that both adapters read, with many words in it. " * 20
    rows = [[long, ("red", "blue")[n % 2]] for n in range(40)]
    asked = Instructions(template="{{ text }}", adapter_column="voice", params={"temperature": 1})
    run = jobs.stage(table(tmp_path, rows), instructions=asked)
    progress = finish(jobs, run)
    assert progress.counts.ok == 40
    with run.connect() as connection:
        order = connection.execute("SELECT _row % 2 FROM plan ORDER BY position").fetchall()
    assert [voice for (voice,) in order] in ([0] * 20 + [1] * 20, [1] * 20 + [0] * 20)


def test_an_edit_of_the_adapter_asks_only_rows_that_it_changes(jobs, batches, tmp_path):
    rows = [["a", "red"], ["b", ""], ["c", ""]]
    asked = Instructions(template="{{ text }}", adapter_column="voice", params={"temperature": 0})
    run = jobs.stage(table(tmp_path, rows), instructions=asked)
    finish(jobs, run)
    before = exported(run, tmp_path)
    revisions.edit(run, batches.store, asked.model_copy(update={"adapter": "blue"}))
    assert finish(jobs, run).generated == 2
    after = exported(run, tmp_path)
    assert before[0]["answer"] == after[0]["answer"]
    assert before[1]["answer"] != after[1]["answer"]


def test_an_adapter_that_was_registered_anew_is_another_one(jobs, batches, adapters, tmp_path):
    asked = Instructions(template="{{ text }}", adapter="red", params={"temperature": 0})
    run = jobs.stage(table(tmp_path, [["a", ""]]), instructions=asked)
    finish(jobs, run)
    adapters.remove("red")
    adapters.add("red", tmp_path / "blue")
    revisions.edit(run, batches.store, asked)
    assert finish(jobs, run).generated == 1


def test_a_run_with_an_adapter_that_is_gone_fails_before_its_first_row(jobs, adapters, tmp_path):
    asked = Instructions(template="{{ text }}", adapter="red")
    run = jobs.stage(table(tmp_path, [["a", ""]]), instructions=asked)
    adapters.remove("red")
    progress = finish(jobs, run, "failed")
    assert "no adapter 'red'" in progress.message and progress.counts.done == 0


def test_an_engine_without_adapters_says_so_once(jobs, batches, adapters, tmp_path, monkeypatch):
    engine = batches.runtime.engine
    monkeypatch.setattr(engine, "info", replace(engine.info, cannot={"adapters": "It has no LoRA."}))
    asked = Instructions(template="{{ text }}", adapter_column="voice")
    run = jobs.stage(table(tmp_path, [["a", "red"]]), instructions=asked)
    progress = finish(jobs, run, "failed")
    assert "It has no LoRA." in progress.message and "Load the model with LoRA" in progress.message


def test_a_column_that_is_not_there_is_told_at_once(jobs, tmp_path):
    with pytest.raises(UnknownColumn):
        jobs.stage(
            table(tmp_path, [["a", ""]]), instructions=Instructions(template="x", adapter_column="tone")
        )


def test_the_command_line_of_a_run_names_its_adapters(jobs, tmp_path):
    asked = Instructions(template="{{ text }}", adapter="red", adapter_column="voice")
    run = jobs.stage(table(tmp_path, [["a", ""]]), instructions=asked)
    assert "--adapter red --adapter-column voice" in command_line(run.spec)


def test_a_grid_takes_an_adapter_once():
    with pytest.raises(ParameterError, match="twice"):
        grid(SetSpec(name="-"), {"adapter": ["red", "red"]})


# -- the command line ---------------------------------------------------------------


def core(*arguments):
    return CliRunner().invoke(cli.app, [*arguments, "--engine", "scripted"])


@pytest.fixture
def named(settings, store, tmp_path):
    """The workspace of the commands, with the adapter red."""
    Adapters(settings, store).add("red", make_adapter(tmp_path / "red"))


def test_a_batch_from_the_command_line(named, tmp_path):
    path, out = table(tmp_path, [["a", "red"], ["a", ""], ["a", "base"]]), tmp_path / "out.jsonl"
    asked = ["--template", "{{ text }}", "--param", "temperature=0"]
    done = core("batch", str(path), "-o", str(out), *asked, "--adapter", "red", "--adapter-column", "voice")
    assert done.exit_code == 0, done.stderr
    red, empty, base = (json.loads(line)["answer"] for line in out.read_text().splitlines())
    assert red == empty != base
    refused = core("batch", str(path), "-o", str(out), *asked, "--adapter", "green")
    assert isinstance(refused.exception, ModelError) and "no adapter 'green'" in str(refused.exception)


def test_a_comparison_from_the_command_line(named, tmp_path):
    out = tmp_path / "out.json"
    done = core("compare", "--prompt", "Hello", "--grid", "adapter=base,red", "-o", str(out))
    assert done.exit_code == 0, done.stderr
    assert [one["adapter"] for one in json.loads(out.read_text())["spec"]["sets"]] == ["base", "red"]
    done = core("compare", "--prompt", "Hello", "--set", "loud: adapter=red temperature=0", "-o", str(out))
    assert done.exit_code == 0, done.stderr
    (one,) = json.loads(out.read_text())["spec"]["sets"]
    assert (one["adapter"], one["params"]) == ("red", {"temperature": 0.0})
