"""The line that a run's page shows: typed into a shell, it asks for the same."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from core.cli import app as cli
from core.command_line import command_line
from core.run_spec import EvaluationSpec, Instructions, OutputSpec, OverflowSpec, PlanSpec
from core.runs import Run
from core.types import EngineSpec

SCHEMA = {"type": "object", "properties": {"评分": {"type": "integer"}}, "required": ["评分"]}
ASKED = {
    "template": Instructions(template="Is 'it' {{ text }}\n\n{{ row[\"a b\"] }}?", system="$HOME; `brief`."),
    "prompt column": Instructions(prompt_column="a b", answer_column="标签"),
    "fields": Instructions(mode="fields", fields=("text", "a b", "c, d"), instruction="Judge \"this\".",
                           plan=PlanSpec(reorder=False, dedupe=False)),
    "chats": Instructions(mode="messages", messages_column="chat"),
    "turns": Instructions(template="{{ text }}", turns=("Why?", "In {{ text }} words?")),
    "turns of a column": Instructions(template="{{ text }}", turns_column="more"),
    "own parameters": Instructions(template="{{ text }}", param_columns={"max_tokens": "most"},
                                   params={"stop": ["END", "\n"], "seed": 3, "top_k": 5}),
    "choices": Instructions(template="{{ text }}", params={"structured_outputs": {"choice": ["a b", "c"]}},
                            output=OutputSpec(choice_probabilities=True)),
    "schema": Instructions(template="{{ text }}", params={"structured_outputs": {"json": SCHEMA}}),
    "json object": Instructions(template="{{ text }}", params={"structured_outputs": {"json_object": True}}),
    "samples": Instructions(template="{{ text }}", params={"n": 2, "logprobs": 0},
                            output=OutputSpec(samples="rows", logprobs=True)),
    "long prompts": Instructions(template="{{ text }}",
                                 overflow=OverflowSpec(action="left", prompt_tokens=9)),
    "evaluation": Instructions(template="{{ text }}",
                               evaluation=EvaluationSpec(reference_column="a b", tolerance=0.5)),
}  # fmt: skip


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    path = tmp_path / "my table.jsonl"
    chat = [{"role": "user", "content": "hi"}]
    row = {"text": "yes", "a b": "x", "chat": json.dumps(chat), "more": '["so?"]', "most": 5, "c, d": 1}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_the_line_asks_for_the_same(table, tmp_path, asked):
    run = Run.stage(tmp_path, table, instructions=asked)
    run.update(engine=EngineSpec(engine="scripted"))
    words = shlex.split(command_line(run.spec, "out.jsonl"))
    assert words[:4] == ["python", "-m", "core", "batch"]
    done = CliRunner().invoke(cli.app, words[3:])
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "home" / "runs").iterdir()
    again = Run(folder).spec
    for part in ("prompt", "answer_column", "overflow", "output", "evaluation", "plan"):
        assert getattr(again, part) == getattr(run.spec, part), part
    assert {**again.params, **run.spec.params} == again.params
