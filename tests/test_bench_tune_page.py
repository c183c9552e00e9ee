"""The search for settings on the benchmark page, and how far from the limit a point stayed."""

import pytest
from apps import button
from streamlit.testing.v1 import AppTest
from tuned import by_width
from waiting import until

from core.types import EngineSpec
from pages.parts import session


@pytest.fixture
def ready(workspace, monkeypatch):
    """Loaded with 256 slots, which are slow; 512 are five times as fast, 1,024 slow again."""
    by_width(monkeypatch, {256: 20, 512: 100})
    session.runtime().load(EngineSpec(engine="scripted"))
    session.runtime().wait_ready(20)
    return workspace


def part():
    app = AppTest.from_string(
        "from pages.parts import bench_tune\nbench_tune.draw()", default_timeout=30
    ).run()
    assert not app.exception
    return app


def words(app):
    shown = [*app.markdown, *app.caption, *app.warning, *app.error, *app.info, *app.success]
    return "\n".join(one.value for one in shown).replace("\\", "")


def small(app):
    for label, value in (("Prompts", 4), ("Tokens in", 8), ("Tokens out", 8)):
        next(one for one in app.number_input if one.label == label).set_value(value)
    return app.run()


def test_without_an_engine_the_page_says_what_is_needed(workspace):
    assert "Load the model first" in words(part())


def test_a_search_finds_uses_and_shows_its_evidence(ready):
    app = small(part())
    button(app, "Search").click().run()
    assert not app.exception
    assert session.tuning().wait(60).best == 1
    app = part()
    assert "Best of" in words(app) and "max_num_seqs 512" in words(app)
    table = app.dataframe[0].value.astype(str)
    assert list(table["Settings"])[:2] == ["settings of before", "★ max_num_seqs 512"]
    assert "better" in table["Against the best then"][1]
    button(app, "Use these settings").click().run()
    assert not app.exception
    assert session.saved_settings().find("embedded").max_num_seqs == 512


def test_while_it_works_it_can_be_stopped(ready):
    app = part()
    session.runtime().engine._seconds_per_token = 0.5
    button(small(app), "Search").click().run()
    assert not app.exception
    until(lambda: session.benchmarks().at_work() is not None)
    app = part()
    assert "Trying settings of before" in words(app)
    button(app, "Stop").click().run()
    assert session.tuning().wait(20).state == "stopped"
    assert "Stopped. Nothing was measured." in words(part())


def test_who_is_at_work_is_named_before_anything_is_interrupted(ready):
    session.runtime().add_user("chats", lambda: 1)
    app = small(part())
    button(app, "Search").click().run()
    assert "interrupts 1 chat answer" in words(app) and session.tuning().now() is None
    button(app, "Let it work").click().run()
    assert "interrupts" not in words(app)
    button(app, "Search").click().run()
    button(app, "Interrupt and search").click().run()
    assert session.tuning().now() is not None
    session.tuning().stop()
    session.tuning().wait(20)


def test_what_cannot_be_searched_is_said_where_search_is(ready):
    app = part()
    next(one for one in app.button_group if one.label == "What may change").set_value([]).run()
    assert button(app, "Search").disabled and "another value" in words(app)
