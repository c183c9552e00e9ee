"""The queue and the server's tables as the browser sees them, on a page of their own."""

import asyncio
import threading
import time

import pytest
from streamlit.testing.v1 import AppTest

from core.engines import scripted
from core.engines.scripted import ScriptedEngine
from core.run_queue import RunPriority
from core.run_spec import Instructions
from pages.parts import session


class Gated(ScriptedEngine):
    """Answers nothing until the gate is open."""

    gate = threading.Event()

    async def complete(self, request):
        while not self.gate.is_set():  # noqa: ASYNC110  (of a thread)
            await asyncio.sleep(0.005)
        return await super().complete(request)


@pytest.fixture
def jobs(workspace, monkeypatch):
    monkeypatch.setattr(scripted, "ScriptedEngine", Gated)
    Gated.gate.clear()
    session.runtime().load()
    session.runtime().wait_ready(20)
    return session.jobs()


@pytest.fixture
def stage(jobs, tmp_path):
    def stage(name):
        path = tmp_path / f"{name}.csv"
        path.write_text("text\none\ntwo\n", encoding="utf-8")
        return jobs.stage(path, instructions=Instructions(template="{{ text }}")).run_id

    return stage


def queue_page():
    from pages.parts import queue_panel

    queue_panel.draw()


def picking_page():
    import streamlit as st

    from pages.parts import queue_panel

    picked = queue_panel.pick_server_file()
    if picked is not None:
        st.text(f"picked {picked}")


def open_page(page):
    return AppTest.from_function(page, default_timeout=20).run()


def button(app, key):
    return next(found for found in app.button if found.key.startswith(key))


def labels(app):
    return [found.label for found in app.button]


def order(app):
    """The names as they stand on the page, Markdown's escapes taken off."""
    return [element.value.replace("\\", "").strip("*") for element in app.markdown]


def settle(app, condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, order(app)
        time.sleep(0.05)
        app.run()


def test_without_a_queue_nothing_is_shown(jobs, stage):
    stage("draft")
    app = open_page(queue_page)
    assert not app.subheader
    assert not app.exception


def test_all_sessions_see_the_queue_and_may_pause_resume_and_cancel(jobs, stage):
    first, second = stage("first"), stage("second")
    jobs.start(first)
    jobs.start(second)
    app, other = open_page(queue_page), open_page(queue_page)
    assert order(app) == order(other) == ["1. first.csv", "2. second.csv"]
    button(app, f"queue-pause-{first}").click().run()
    settle(app, lambda: order(app) == ["1. second.csv", "first.csv"])
    assert labels(app) == ["Pause", "Cancel", "Open", "Resume", "Cancel", "Open"]
    assert any("what is done is kept" in caption.value for caption in app.caption)  # the other may plan yet
    button(other.run(), f"queue-resume-{first}").click().run()
    assert order(other) == ["1. second.csv", "2. first.csv"]
    button(app.run(), f"queue-cancel-{second}").click().run()
    settle(app, lambda: order(app) == ["1. first.csv"])
    assert jobs.progress(second).state == "stopped"
    Gated.gate.set()
    assert jobs.wait(first, timeout_s=20).state == "finished"
    assert not app.run().subheader
    assert not app.exception


def test_a_priority_chosen_in_one_session_moves_the_run_and_shows_in_the_others(jobs, stage):
    first, second = stage("first"), stage("second")
    jobs.start(first)
    jobs.start(second)
    app, other = open_page(queue_page), open_page(queue_page)
    app.selectbox(key=f"queue-priority-{second}").select(RunPriority.HIGH).run()
    settle(app, lambda: order(app) == ["1. second.csv", "2. first.csv"])
    assert other.run().selectbox(key=f"queue-priority-{second}").value == RunPriority.HIGH
    other.selectbox(key=f"queue-priority-{second}").select(RunPriority.LOW).run()
    settle(other, lambda: order(other) == ["1. first.csv", "2. second.csv"])
    assert app.run().selectbox(key=f"queue-priority-{second}").value == RunPriority.LOW
    assert session.store().run(second).priority == RunPriority.LOW


def test_a_look_at_another_page_leaves_the_priority_as_it_is(jobs, stage):
    def pages():
        import streamlit as st

        from pages.parts import queue_panel

        if not st.checkbox("Elsewhere"):
            queue_panel.draw()

    run_id = stage("first")
    jobs.start(run_id)
    app = open_page(pages)
    for _there_and_back in range(2):
        app.checkbox[0].set_value(not app.checkbox[0].value).run()
    assert app.selectbox(key=f"queue-priority-{run_id}").value == RunPriority.NORMAL
    assert session.store().run(run_id).priority == RunPriority.NORMAL


def test_a_run_of_the_queue_opens(jobs, stage):
    first = stage("first")
    jobs.start(first)
    app = open_page(queue_page)
    button(app, f"queue-open-{first}").click().run()
    assert app.session_state["batch:run"] == first


def test_a_name_is_shown_letter_by_letter(jobs, stage):
    jobs.start(stage("![x](http:__y)"))
    app = open_page(queue_page)
    assert app.markdown[0].value == r"**1\. \!\[x\]\(http&#58;\_\_y\)\.csv**"


@pytest.fixture
def folder(tmp_path, monkeypatch, workspace):
    folder = tmp_path / "tables"
    (folder / "2026").mkdir(parents=True)
    (folder / "2026" / "sales.csv").write_text("a\n" * 3000)
    (folder / "films.csv").write_text("a\n1\n")
    monkeypatch.setenv("WORKBENCH_TABLES_DIR", str(folder))
    return folder


def test_without_a_folder_of_tables_there_is_nothing_to_pick(workspace):
    app = open_page(picking_page)
    assert not app.selectbox
    assert not app.error


def test_a_table_is_picked_from_the_folder_and_from_a_folder_in_it(folder):
    app = open_page(picking_page)
    options = app.selectbox[0].options
    assert options[0] == "2026/"
    assert options[1].startswith("films.csv · 4 B · ")
    assert button_of(app, "Use this table").disabled
    app.selectbox[0].select_index(1).run()
    button_of(app, "Use this table").click().run()
    assert [text.value for text in app.text] == [f"picked {folder / 'films.csv'}"]
    for _again in range(2):  # in, out, and in again
        app.selectbox[0].select_index(0).run()
        assert app.selectbox[0].options[0].startswith("sales.csv · 6.0 kB · ")
        app.selectbox[0].select_index(0).run()
        button_of(app, "Use this table").click().run()
        assert [text.value for text in app.text] == [f"picked {folder / '2026' / 'sales.csv'}"]
        button_of(app, "Up").click().run()
        assert app.selectbox[0].value is None
    assert not app.exception


def button_of(app, label):
    return next(found for found in app.button if found.label == label)


def test_a_folder_that_goes_away_is_said_so_and_left(folder):
    app = open_page(picking_page)
    app.selectbox[0].select_index(0).run()
    (folder / "2026" / "sales.csv").unlink()
    (folder / "2026").rmdir()
    app.run()
    assert "2026" in app.error[0].value
    button_of(app, "Back to the first folder").click().run()
    assert app.selectbox[0].options[0].startswith("films.csv")
    assert not app.error


def test_a_file_that_goes_away_before_it_is_used_is_said_so(folder):
    app = open_page(picking_page)
    app.selectbox[0].select_index(1).run()
    (folder / "films.csv").unlink()
    app.run()
    assert not [found for found in app.selectbox[0].options if found.startswith("films")]
    assert not app.exception


def test_a_missing_folder_names_the_setting(folder, monkeypatch):
    monkeypatch.setenv("WORKBENCH_TABLES_DIR", str(folder / "gone"))
    app = open_page(picking_page)
    assert "WORKBENCH\\_TABLES\\_DIR" in app.error[0].value
    assert not app.exception
