"""The batch page with the scripted engine: from a table to answers, and what it says when it can't."""

import time
from pathlib import Path

from streamlit.testing.v1 import AppTest

from core.run_spec import Instructions
from pages.parts import session

HOME = Path(__file__).parents[1] / "Home.py"
CSV = "id,text\n007,good film\n008,bad film\n009,\n"


def open_page(**query):
    app = AppTest.from_file(HOME, default_timeout=20).run()
    app.switch_page("pages/batch.py")
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def texts(elements):
    """What they show: Markdown's escapes of names from outside taken off."""
    return " | ".join(str(element.value).replace("\\", "") for element in elements)


def button(app, label):
    return next(found for found in app.button if found.label.startswith(label))


def stage(text, tmp_path, instructions=None):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return session.jobs().stage(path, instructions=instructions)


def settle(app, condition):
    """Run the page until `condition` holds: AppTest does not tick fragments."""
    deadline = time.monotonic() + 20
    while not condition(app):
        assert time.monotonic() < deadline, [texts(app.error), texts(app.warning), texts(app.info)]
        time.sleep(0.1)
        app.run()


def test_an_uploaded_table_becomes_a_draft_and_then_answers(workspace):
    app = open_page()
    app.file_uploader[0].upload("films.csv", CSV.encode(), "text/csv").run()
    settle(app, lambda app: "run" in app.query_params)
    app.run()
    assert "3 rows · 2 columns · CSV · utf-8" in texts(app.caption)
    assert list(app.dataframe[0].value["id"]) == ["007", "008", "009"]
    app.text_area[0].set_value("Is it good? {{ text }}").run()
    assert "Is it good? good film" in texts(app.text)
    button(app, "Run 3 rows").click().run()
    settle(app, lambda app: app.dataframe and "answer" in app.dataframe[0].value)
    assert list(app.dataframe[0].value["answer_status"]) == ["ok", "ok", "ok"]
    assert not app.exception
    assert not list(workspace.uploads_dir.iterdir())


def test_the_example_table_is_one_click_away_and_needs_no_edit(workspace):
    app = open_page()
    button(app, "Use the example table").click().run()
    settle(app, lambda app: "run" in app.query_params)
    app.run()
    assert "{{ review }}" in app.text_area[0].value
    assert not button(app, "Run 40 rows").disabled
    assert not app.error


def test_an_unknown_column_is_said_at_once_and_blocks_the_start(workspace, tmp_path):
    app = open_page(run=stage_through_page(tmp_path).run_id)
    app.text_area[0].set_value("{{ txt }}").run()
    assert "'txt'" in texts(app.error)
    assert "id, text" in texts(app.error)
    assert button(app, "Run 3 rows").disabled


def stage_through_page(tmp_path, instructions=None):
    open_page()  # makes the shared runtime and store
    return stage(CSV, tmp_path, instructions)


def test_a_clashing_answer_column_blocks_the_start(workspace, tmp_path):
    app = open_page(run=stage_through_page(tmp_path).run_id)
    next(found for found in app.text_input if found.label == "Answer column").set_value("text").run()
    assert "already has a column 'text'" in texts(app.error)
    assert button(app, "Run 3 rows").disabled


def test_a_draft_keeps_its_prompt_over_a_refresh(workspace, tmp_path):
    run = stage_through_page(tmp_path)
    app = open_page(run=run.run_id)
    app.text_area[0].set_value("Judge: {{ text }}").run()
    assert open_page(run=run.run_id).text_area[0].value == "Judge: {{ text }}"


def test_a_broken_file_is_explained_without_a_traceback(workspace):
    app = open_page()
    app.file_uploader[0].upload("broken.csv", b"", "text/csv").run()
    settle(app, lambda app: app.error)
    assert "broken.csv" in texts(app.error)
    assert "empty" in texts(app.error)
    assert not app.exception


def test_an_interrupted_run_offers_to_go_on_and_does(workspace, tmp_path):
    run = stage_through_page(tmp_path, Instructions(template="{{ text }}"))
    session.store().update_run(run.run_id, state="running", owner_pid=2**22 + 1, owner_started=1.0)
    app = open_page(run=run.run_id)
    button(app, "Resume: 3 rows to go").click().run()
    settle(
        app, lambda app: any("Finished" in str(bar) for bar in app.main.children.values()) or finished(run)
    )
    assert session.jobs().progress(run.run_id).state == "finished"


def finished(run):
    return session.jobs().progress(run.run_id).state == "finished"


def test_a_run_that_is_not_there_is_said_so(workspace):
    app = open_page(run="20200101-000000-abcdef")
    assert "no run" in texts(app.error)
    assert not app.exception


def test_earlier_runs_are_listed_and_open(workspace, tmp_path):
    run = stage_through_page(tmp_path)
    app = open_page()
    button(app, "Open").click().run()
    assert app.query_params["run"] == run.run_id
