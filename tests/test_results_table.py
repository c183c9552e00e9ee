"""The table of results and the pictures of a run: what they show, what they find, what they leave out."""

import csv
import json

import pyarrow as pa
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.batch import Progress
from core.results import Counts
from core.run_spec import Instructions
from core.runs import Run
from pages.parts import run_charts

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["mood", "score"],
}
ROWS = 230


def result(row, **values):
    kept = {
        "_row": row, "status": "ok", "answer": f"answer {row}", "error": None, "finish_reason": "stop",
        "prompt_tokens": 10, "output_tokens": row % 50 + 1, "cached_tokens": 8, "ttft_s": 0.05,
        "e2el_s": 1.5, "same_as": None, "truncated_tokens": None, "logprob": None, "samples": None,
        "turns": None, "choice_probabilities": None, "valid": None, "finished_at": float(row),
    }  # fmt: skip
    return {**kept, **values}


RESULTS = {
    1: {"status": "error", "answer": None, "error": "Too *long* by 7 tokens.", "finish_reason": None},
    2: {"finish_reason": "length", "same_as": 0, "truncated_tokens": 12, "logprob": -6.0,
        "answer": "# no heading"},
    3: {"samples": json.dumps([
        {"text": "one", "finish_reason": "stop", "output_tokens": 1, "logprob": -0.5},
        {"text": "two", "finish_reason": "length", "output_tokens": 2, "logprob": None},
    ])},
    4: {"turns": json.dumps(["first turn", "second turn"]), "answer": "second turn"},
    5: {"choice_probabilities": json.dumps({"no": 0.25, "yes": 0.75}), "answer": "yes"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_cached():
    st.cache_resource.clear()


@pytest.fixture
def make_run(tmp_path):
    """A run over 230 rows, the last 10 of them without an answer."""

    def make(changed=RESULTS, **params):
        source = tmp_path / "films.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([["id", "text"], *([f"{row:03}", f"film {row}"] for row in range(ROWS))])
        run = Run.stage(tmp_path / "runs", source, instructions=Instructions(template="{{ text }}"))
        run.update(params=params)
        batch = pa.Table.from_pylist(  # noqa: F841, DuckDB finds it
            [result(row, **changed.get(row, {})) for row in range(ROWS - 10)]
        )
        with run.connect() as connection:
            connection.execute("INSERT INTO results BY NAME SELECT * FROM batch")
        return run

    return make


def page(run):
    def script(run, progress):
        from pages.parts import results_table

        results_table.draw(run, progress)

    progress = Progress(
        run_id=run.run_id, state="stopped", rows=ROWS, counts=Counts(), generated=0, work_s=1.0,
        output_tokens_per_s=None, eta_s=None,
    )  # fmt: skip
    return AppTest.from_function(script, args=(run, progress), default_timeout=20).run()


def texts(elements):
    """What they show: Markdown's escapes taken off."""
    return " | ".join(str(element.value).replace("\\", "") for element in elements)


def rows(app):
    """The numbers of the rows in the table, as they are shown."""
    return list(app.dataframe[0].value.index)


def choose_row(app, place):
    """As a click on a cell of the `place`th row does."""
    app.session_state[app.dataframe[0].key] = {
        "selection": {"rows": [], "columns": [], "cells": [(place, "id")]}
    }
    return app.run()


def test_the_first_page_shows_answers_beside_the_files_columns(make_run):
    app = page(make_run())
    table = app.dataframe[0].value
    assert rows(app) == list(range(1, 101))
    assert list(table.columns) == [
        "answer", "answer_status", "answer_error", "id", "text", "answer_finish_reason",
        "answer_prompt_tokens", "answer_output_tokens",
    ]  # fmt: skip
    assert list(table["id"][:2]) == ["000", "001"]
    assert list(table["answer"][:2]) == ["answer 0", ""]
    assert list(table["answer_status"][:2]) == ["ok", "error"]
    assert "Rows 1 to 100 of 230" in texts(app.caption)
    assert not app.exception


def test_pages_go_to_the_last_row_and_a_filter_starts_again_at_the_first(make_run):
    app = page(make_run())
    app.pagination[0].set_value(3).run()
    assert rows(app) == list(range(201, 231))
    assert list(app.dataframe[0].value["answer_status"])[-1] == ""
    app.text_input[0].set_value("FILM 1").run()  # film 1, 10 to 19, 100 to 199
    assert "111 of 230 rows · 1 to 100 of these" in texts(app.caption)
    assert rows(app)[:3] == [2, 11, 12]


def test_status_and_search_narrow_what_is_shown_together(make_run):
    app = page(make_run())
    app.pills[0].set_value(["error", "none"]).run()
    assert "11 of 230 rows" in texts(app.caption)
    app.text_input[0].set_value("too *long*").run()
    assert rows(app) == [2]
    app.text_input[0].set_value("nowhere").run()
    assert not app.dataframe
    assert "None of 230 rows" in texts(app.caption)


def test_longest_answers_come_first_when_asked(make_run):
    app = page(make_run())
    app.selectbox[0].set_value("longest").run()
    assert rows(app)[:2] == [50, 100]


def test_a_click_shows_the_whole_row(make_run):
    app = choose_row(page(make_run()), 2)
    shown = texts(app.caption)
    assert "line 4 of the file · finish reason length · 10 prompt tokens (8 from the cache)" in shown
    assert "3 output tokens · first token after 50 ms · answer after 1.5 s" in shown
    assert "log-probability -6.00, -2.000 a token" in shown
    assert "Row 1 asks the same" in shown
    assert "cut by 12 tokens" in shown
    assert "# no heading" in texts(app.text)
    choose_row(app, 1)
    assert "Too *long* by 7 tokens." in texts(app.error)


def test_all_samples_turns_and_choices_of_a_row_are_there(make_run):
    app = choose_row(page(make_run()), 3)
    assert texts(app.text) == "one | two"
    assert "Answer 1 · stop · 1 token · log-probability -0.50" in texts(app.caption)
    choose_row(app, 4)
    assert texts(app.text) == "first turn | second turn"
    choose_row(app, 5)
    assert list(app.dataframe[1].value["Choice"]) == ["yes", "no"]


def test_the_chosen_row_does_not_stay_when_other_rows_are_shown(make_run):
    app = choose_row(page(make_run()), 2)
    app.pagination[0].set_value(2).run()
    assert not app.text


def test_properties_of_structured_answers_are_columns(make_run):
    changed = {
        0: {"answer": '{"mood": "good", "score": 4}', "valid": True},
        1: {"answer": '{"mood": "go', "valid": False},
        2: {"answer": json.dumps({"mood": "long " * 1000, "score": 1}), "valid": True},
    }
    app = page(make_run(changed, structured_outputs={"json": SCHEMA}))
    table = app.dataframe[0].value
    assert list(table["answer_mood"][:2]) == ["good", ""]
    assert list(table["answer_score"][:3]) == ["4", "", "1"]
    next(found for found in app.pills if found.label == "Structure of the answer").set_value(False).run()
    assert rows(app) == [2]
    choose_row(app, 0)
    assert "does not have the structure" in texts(app.caption)


def test_new_answers_show_without_a_restart(make_run):
    run = make_run()
    app = page(run)
    assert "No answer yet 10" in app.pills[0].options
    with run.connect() as connection:
        connection.execute("UPDATE results SET stale = true WHERE _row = 1")
    app.run()
    assert "No answer yet 11" in app.pills[0].options


# -- pictures -----------------------------------------------------------------------


def test_a_histogram_has_the_limit_in_it_or_points_to_it():
    near = run_charts.length_histogram([0, 50, 100], [3, 1], 120)
    assert list(near.data[0].x) == [25, 75]
    assert list(near.data[0].y) == [3, 1]
    assert near.layout.shapes[0].x0 == 120
    assert near.layout.xaxis.range[1] > 120
    far = run_charts.length_histogram([0, 50, 100], [3, 1], 8192)
    assert not far.layout.shapes
    assert far.layout.xaxis.range[1] == 100
    assert far.layout.annotations[0].text == "Context 8,192 →"
    assert not run_charts.length_histogram([0, 50, 100], [3, 1]).layout.annotations


def test_answers_are_shown_letter_by_letter_and_never_merged():
    figure = run_charts.answer_bar([("<b>yes</b>", 995), ("1", 4), ("1.0", 1)])
    assert list(figure.layout.yaxis.ticktext) == ["&lt;b&gt;yes&lt;/b&gt;", "1", "1.0"]
    assert list(figure.data[0].text) == [">99%", "<1%", "<1%"]


def test_finish_reasons_are_explained():
    figure = run_charts.finish_reason_bar([("stop", 3), ("length", 1), ("other", 1)])
    assert list(figure.layout.yaxis.ticktext) == ["Finished (stop)", "Cut off (length)", "other"]


def test_rows_per_second_look_back_over_the_window():
    assert run_charts.rows_per_s([0, 5, 10, 20], [0, 10, 20, 20]) == [None, 2.0, 2.0, 0.0]
    assert run_charts.rows_per_s([3, 3], [1, 5]) == [None, None]
    assert run_charts.rows_per_s([], []) == []


def test_what_was_not_measured_has_no_line():
    figure = run_charts.cache_chart([0, 1], [0.1, 0.2], [None, None])
    assert [line.name for line in figure.data] == ["KV cache in use"]


def test_every_axis_says_its_unit():
    figures = [
        (run_charts.length_histogram([0, 5], [1]), "Prompt tokens", "Rows"),
        (run_charts.rate_chart([0, 1], [5, 6]), "Seconds at work", "Output tokens/s"),
        (run_charts.rate_chart([0, 1], [5, 6], "Rows/s"), "Seconds at work", "Rows/s"),
        (run_charts.cache_chart([0, 1], [0, 1]), "Seconds at work", "Share"),
    ]
    for figure, *titles in figures:
        assert [figure.layout.xaxis.title.text, figure.layout.yaxis.title.text] == titles


def test_a_run_is_drawn_with_the_pictures_it_has_figures_for(make_run):
    def script(run):
        from pages.parts import run_charts

        run_charts.draw_results(run, context=2048, max_tokens=64)
        run_charts.draw_progress([0, 1, 2], [0, 5, 9], [10, 20, 15], [0.1, 0.2, 0.3], key="live")

    labels = {row: {"answer": "yes" if row % 2 else "no"} for row in range(ROWS)}
    app = AppTest.from_function(script, args=(make_run(labels),), default_timeout=20).run()
    assert not app.exception
    assert texts(app.caption) == (
        "Length of the prompts | Length of the answers | Why answers ended | Answers given (2 different ones)"
    )
    assert len(app.get("plotly_chart")) == 4 + 3
