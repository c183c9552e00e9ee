"""What a user asks on the batch page, and what comes of it: modes, shapes, tries, second goes."""

import csv
import html
import json
import time

import pytest
import streamlit as st
from test_batch_page import button, open_page, settle, texts

from core.engines.scripted import ScriptedEngine
from core.errors import RequestRejected, TableError
from core.run_spec import BatchLinesSpec, BatchModelSpec, EvaluationSpec, Instructions
from pages.parts import session

FILMS = "id,film,mood\n" + "".join(f"{n},Film {n},{'good' if n % 2 else 'bad'}\n" for n in range(1, 31))


def stage(tmp_path, text=FILMS, instructions=None, name="films.csv"):
    open_page()  # makes the shared runtime and store
    session.runtime().wait_ready(20)
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return session.jobs().stage(path, instructions=instructions)


def named(elements, label):
    return next(found for found in elements if found.label.startswith(label))


def choose(app, label, value):
    """Set the widget with this label, whatever it is."""
    kinds = (app.segmented_control, app.text_area, app.text_input, app.selectbox, app.multiselect,
             app.number_input, app.slider, app.checkbox)  # fmt: skip
    named([found for kind in kinds for found in kind], label).set_value(value).run()
    assert not app.exception
    return app


def progress(run):
    return session.jobs().progress(run.run_id)


def press(app, run, label):
    """Press a button that starts the run, and wait until it rests."""
    before = len(run.spec.sessions)
    button(app, label).click().run()
    settle(app, lambda _app: len(run.spec.sessions) > before and not session.jobs().is_here(run.run_id))
    app.run()
    assert not app.exception
    return progress(run)


def exported(run, tmp_path):
    target = tmp_path / "out.csv"
    run.export(target, format="csv")
    with target.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metrics(app):
    return {metric.label: metric.value for metric in app.metric}


def answered(tmp_path, text=FILMS, **asked):
    """A finished run over the films."""
    run = stage(tmp_path, text, instructions=Instructions(**{"template": "{{ film }}", **asked}))
    session.jobs().start(run.run_id)
    settle(open_page(), lambda _app: progress(run).state == "finished")
    return run


# -- ways to make a prompt --------------------------------------------------------


def test_chosen_columns_go_to_the_model_as_json(workspace, tmp_path):
    run = stage(tmp_path)
    app = choose(open_page(run=run.run_id), "Prompts are made from", "fields")
    assert "No fields are chosen" in texts(app.error)
    assert button(app, "Run 30 rows").disabled
    choose(app, "Instruction", "Is it for children?")
    choose(app, "Columns the model reads", ["film", "mood"])
    assert "Is it for children?" in texts(app.text)
    assert '"film": "Film 1"' in texts(app.text)
    assert press(app, run, "Run 30 rows").counts.ok == 30
    assert run.spec.prompt.fields == ("film", "mood")


def test_chats_come_from_a_column_and_what_is_no_chat_is_said_before_and_after(workspace, tmp_path):
    chats = [json.dumps([{"role": "user", "content": "很久以前"}]), "no chat"]
    run = stage(tmp_path, "".join(json.dumps({"talk": chat}) + "\n" for chat in chats), name="chats.jsonl")
    app = choose(open_page(run=run.run_id), "Prompts are made from", "messages")
    assert "很久以前" in texts(app.text)
    assert "Row 2" in texts(app.error)
    counts = press(app, run, "Run 2 rows").counts
    assert (counts.ok, counts.errors) == (1, 1)
    assert any(expander.label == "1 row failed" for expander in app.expander)
    assert "talk" in texts(app.text)


def test_an_openai_batch_file_needs_no_prompt_and_goes_back_as_one(workspace, tmp_path):
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    line = {"custom_id": "a-1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    run = stage(tmp_path, json.dumps(line) + "\n", name="batch.jsonl")
    app = open_page(run=run.run_id)
    assert "This is an OpenAI Batch file" in texts(app.info)
    assert not [area for area in app.text_area if area.label == "Template"]
    assert press(app, run, "Run 1 row").counts.ok == 1
    assert exported(run, tmp_path)[0]["answer_finish_reason"] == "length"
    assert "OpenAI Batch" in [found.label for found in app.get("download_button")]


def test_examples_from_a_second_table_stand_before_every_prompt(workspace, tmp_path):
    run = stage(tmp_path, instructions=Instructions(template="{{ film }}?"))
    app = open_page(run=run.run_id)
    table = b"film,verdict\nHeat,bad\nUp,good\n"
    named(app.file_uploader, "A table with examples").upload("right.csv", table, "text/csv").run()
    choose(app, "Column with the answers", "verdict")
    choose(app, "How many", 2)
    button(app, "Take these examples").click().run()
    app.run()
    assert any(found.label == "Examples and further turns (2)" for found in app.expander)
    assert [(example.user, example.assistant) for example in run.spec.prompt.examples] == [
        ("Heat?", "bad"),
        ("Up?", "good"),
    ]
    assert "Assistant: good" in texts(app.caption)
    button(app, "Remove the examples").click().run()
    assert run.spec.prompt.examples == ()


def test_further_turns_are_asked_after_the_answer(workspace, tmp_path):
    run = stage(tmp_path)
    app = open_page(run=run.run_id)
    button(app, "Add a turn").click().run()
    choose(app, "Turn 2", "In one word: {{ mood }}")
    assert "After the answer: In one word&#58; good" in texts(app.caption)
    press(app, run, "Run 30 rows")
    assert all(row["answer_turn_1"] and row["answer"] for row in exported(run, tmp_path))


def test_turns_from_a_column_stay_when_the_prompt_is_changed_on_the_page(workspace, tmp_path):
    text = 'film,more\nHeat,"[""And in one word?""]"\nUp,[]\n'
    run = stage(tmp_path, text, Instructions(template="{{ film }}?", turns_column="more"))
    app = open_page(run=run.run_id)
    assert not [found for found in app.button if found.label == "Add a turn"]
    choose(app, "Template", "Tell me of {{ film }}.")
    assert run.spec.prompt.turns_column == "more"
    assert press(app, run, "Run 2 rows").counts.ok == 2
    assert [bool(row["answer_turns"]) for row in exported(run, tmp_path)] == [True, False]


def test_turns_can_be_written_instead_of_those_of_a_column(workspace, tmp_path):
    run = stage(tmp_path, "film,more\nUp,[]\n", Instructions(template="{{ film }}?", turns_column="more"))
    app = open_page(run=run.run_id)
    choose(app, "Further turns from the column more", False)
    button(app, "Add a turn").click().run()
    choose(app, "Turn 2", "In one word?")
    assert (run.spec.prompt.turns_column, run.spec.prompt.turns) == (None, ("In one word?",))


def test_a_table_of_the_servers_folder_becomes_a_draft(workspace, tmp_path, monkeypatch):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "films.csv").write_text(FILMS)
    monkeypatch.setenv("WORKBENCH_TABLES_DIR", str(tmp_path / "tables"))
    app = open_page()
    named(app.selectbox, "Table on the server").select_index(0).run()
    button(app, "Use this table").click().run()
    settle(app, lambda app: "run" in app.query_params)
    app.run()
    assert "30 rows · 3 columns · CSV" in texts(app.caption)
    assert (tmp_path / "tables" / "films.csv").exists()


# -- answers as data --------------------------------------------------------------


def test_choices_are_kept_to_and_their_probabilities_are_columns(workspace, tmp_path):
    run = stage(tmp_path)
    app = choose(open_page(run=run.run_id), "Answers are", "choice")
    assert button(app, "Run 30 rows").disabled
    choose(app, "Choices, one a line", "good\nbad")
    choose(app, "A column with the probability", True)
    assert press(app, run, "Run 30 rows").counts.ok == 30
    for row in exported(run, tmp_path):
        assert row["answer"] in ("good", "bad")
        assert row["answer_valid"] == "true"
        assert float(row["answer_p_good"]) + float(row["answer_p_bad"]) == pytest.approx(1)


def test_a_schema_that_is_none_blocks_the_start_and_says_why(workspace, tmp_path):
    app = choose(open_page(run=stage(tmp_path).run_id), "Answers are", "json")
    choose(app, "JSON Schema", "{'type': 'object'}")
    assert "not JSON" in texts(app.error)
    assert "Complete the shape of the answers" in texts(app.caption)
    assert button(app, "Run 30 rows").disabled
    assert button(app, "Try 20 rows").disabled
    choose(app, "Answers are", "none")
    assert not app.error
    assert not button(app, "Run 30 rows").disabled


def test_several_answers_that_would_be_the_same_are_refused_with_the_reason(workspace, tmp_path):
    app = choose(open_page(run=stage(tmp_path).run_id), "Temperature", 0.0)
    choose(app, "Answers per row", 2)
    assert "n=2 answers at temperature=0 would all be the same" in texts(app.error)
    assert button(app, "Run 30 rows").disabled
    choose(app, "Temperature", 0.7)
    assert not button(app, "Run 30 rows").disabled


def test_answers_are_held_against_the_reference_column(workspace, tmp_path):
    run = stage(tmp_path)
    app = choose(open_page(run=run.run_id), "Answers are", "choice")
    choose(app, "Choices, one a line", "good\nbad")
    choose(app, "Column with the right answers", "mood")
    press(app, run, "Run 30 rows")
    assert "30 answers scored against mood" in texts(app.caption)
    right = sum(row["answer"] == row["mood"] for row in exported(run, tmp_path))
    assert metrics(app)["Normalised match"] == f"{right / 30:.1%}"
    assert run.spec.evaluation == EvaluationSpec(reference_column="mood")


# -- before, and against what came ---------------------------------------------------


def test_the_forecast_says_what_comes_and_is_compared_with_it(workspace, tmp_path):
    run = stage(tmp_path, "text\n" + "same words\n" * 3 + "other words here\n")
    app = choose(open_page(run=run.run_id), "Temperature", 0.0)
    choose(app, "Template", "{{ text }}")
    forecast = metrics(app)
    assert forecast["Requests"] == "2"
    assert "2 ask the same as another one" in named(app.metric, "Requests").help
    (chart,) = app.get("plotly_chart")
    assert "Context 8,192" in chart.proto.spec
    press(app, run, "Run 4 rows")
    assert metrics(app)["Shared"] == "2"
    assert any(found.label == "Forecast and what came" for found in app.expander)
    compared = next(frame.value for frame in app.dataframe if "Actual" in frame.value)
    lines = {name: (expected, actual) for name, expected, actual in compared.itertuples(index=False)}
    assert lines["Requests"] == ("2", "2")
    assert lines["Prompt tokens"] == (forecast["Prompt tokens"],) * 2


def test_a_few_rows_are_tried_then_forecast_the_rest_and_are_kept(workspace, tmp_path):
    run = stage(tmp_path)
    app = open_page(run=run.run_id)
    assert metrics(app)["Output tokens"].startswith("≤")
    tried = press(app, run, "Try 20 rows")
    assert (tried.state, tried.counts.done) == ("stopped", 20)
    assert "tried" in texts(app.caption)
    expected = int(metrics(app)["Output tokens"].replace(",", ""))
    assert press(app, run, "Resume: 10 rows to go").state == "finished"
    assert [session.generated for session in run.spec.sessions] == [20, 10]
    assert run.spec.forecast.output_tokens == expected


# -- once more ------------------------------------------------------------------------


def test_failed_rows_are_asked_again(workspace, tmp_path, monkeypatch):
    answer = ScriptedEngine.complete

    async def refuse_one(self, request):
        if "Film 7" in self._read(request)[0]:
            raise RequestRejected("Film 7 is refused.")
        return await answer(self, request)

    monkeypatch.setattr(ScriptedEngine, "complete", refuse_one)
    run = answered(tmp_path)
    app = open_page(run=run.run_id)
    assert "1 × Film 7 is refused." in texts(app.text)
    monkeypatch.setattr(ScriptedEngine, "complete", answer)
    counts = press(app, run, "Retry 1 failed row").counts
    assert (counts.ok, counts.errors) == (30, 0)
    assert run.spec.sessions[-1].generated == 1


def test_cut_answers_are_done_again_with_more_tokens(workspace, tmp_path):
    run = answered(tmp_path, params={"max_tokens": 2})
    app = open_page(run=run.run_id)
    assert "cut at 2 tokens" in texts(app.markdown)
    choose(app, "Max tokens", 40)
    press(app, run, "Do them again")
    assert {row["answer_finish_reason"] for row in exported(run, tmp_path)} == {"stop"}
    assert not [found for found in app.button if found.label == "Do them again"]


def test_after_a_change_of_the_prompt_only_rows_that_ask_something_else_are_asked(workspace, tmp_path):
    run = answered(tmp_path)
    app = open_page(run=run.run_id)
    button(app, "Change the prompt").click().run()
    choose(app, "Template", "{{ film }}{% if id == '3' %} again{% endif %}")
    assert press(app, run, "Run the rows whose request changed").state == "finished"
    assert run.spec.sessions[-1].generated == 1
    answers = [row["answer"] for row in exported(run, tmp_path)]
    assert [place for place, answer in enumerate(answers, 1) if answer.endswith("again")] == [3]


def test_a_change_of_an_api_batch_keeps_what_its_model_names_mean(workspace, tmp_path):
    """A line of the preset "short" was asked without it: the form dropped what the API had noted."""
    lines = [
        {
            "custom_id": f"q{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": "one two three four five six"}],
            },
        }
        for number, model in enumerate(["scripted", "short"])
    ]
    models = {"scripted": BatchModelSpec(), "short": BatchModelSpec(params={"max_tokens": 2})}
    lines_spec = BatchLinesSpec(url="/v1/chat/completions", models=models)
    asked = Instructions(mode="openai", batch_lines=lines_spec, params={"max_tokens": 4})
    run = stage(tmp_path, "\n".join(map(json.dumps, lines)), asked, "lines.jsonl")
    session.jobs().start(run.run_id)
    settle(open_page(), lambda _app: progress(run).state == "finished")
    app = open_page(run=run.run_id)
    button(app, "Change the prompt").click().run()
    assert "when the batch came. short: max_tokens 2." in html.unescape(texts(app.caption)).replace("\\", "")
    choose(app, "Max tokens", 5)
    assert press(app, run, "Run the rows whose request changed").state == "finished"
    assert run.spec.prompt.batch_lines == asked.batch_lines
    assert [row["answer_output_tokens"] for row in exported(run, tmp_path)] == ["5", "2"]


def test_a_change_can_be_left_alone(workspace, tmp_path):
    run = answered(tmp_path)
    app = open_page(run=run.run_id)
    button(app, "Change the prompt").click().run()
    choose(app, "Template", "something else")
    button(app, "Leave it as it is").click().run()
    assert metrics(app)["Ok"] == "30"
    assert run.spec.prompt.template == "{{ film }}"


def test_a_download_that_cannot_be_made_says_why(workspace, tmp_path, monkeypatch):
    run = answered(tmp_path, text="film\n" + "x" * 40_000 + "\n")
    files = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, **_rest: files.update({label: data}))
    app = open_page(run=run.run_id)
    with pytest.raises(TableError):
        files["Excel"]()
    assert "an Excel cell holds 32,767" in texts(app.run().error)
    files["CSV"]().close()
    assert not app.run().error


def test_a_paused_run_waits_in_the_queue_of_the_start_page(workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_SCRIPTED_TOKENS_PER_S", "2")
    run = stage(tmp_path, instructions=Instructions(template="{{ film }}"))
    app = open_page(run=run.run_id)
    button(app, "Run 30 rows").click().run()
    settle(app, lambda app: any(found.label == "Pause" for found in app.button))
    button(app, "Pause").click().run()
    settle(app, lambda _app: progress(run).state == "paused" and not session.jobs().is_here(run.run_id))
    start = open_page()
    assert [found.value for found in start.subheader] == ["Queue", "Earlier runs"]
    assert "films.csv" in texts(start.markdown)
    button(start, "Resume").click().run()
    deadline = time.monotonic() + 20
    while progress(run).state not in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    session.jobs().stop(run.run_id)
