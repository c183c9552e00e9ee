"""The benchmark page, run as Streamlit runs it, with the scripted engine."""

import pytest
from apps import button, opened, turned_to, until

from core.bench.spec import BenchSpec, Load, RandomWorkload, Sweep
from pages.parts import session


@pytest.fixture
def app(workspace):
    return opened("benchmark")


def words(app):
    """All that is written, without what escapes it."""
    texts = [*app.markdown, *app.caption, *app.info, *app.error, *app.warning, *app.subheader]
    return "\n".join(one.value for one in texts).replace("\\", "")


def metrics(app):
    return {one.label: one.value for one in app.metric}


def choice(app, label):
    return next(one for one in app.segmented_control if one.label == label)


def field(app, label):
    every = [*app.number_input, *app.text_input, *app.selectbox, *app.text_area, *app.toggle]
    return next(one for one in every if one.label == label)


def change(element, value):
    element.set_value(value).run()


def test_a_throughput_benchmark_is_set_up_run_and_looked_at(app):
    change(field(app, "Prompts"), 12)
    change(field(app, "Tokens in"), 20)
    change(field(app, "Tokens out"), 5)
    assert "12 random prompts, 20 tokens in, 5 out" in words(app)
    button(app, "Start").click().run()
    until(app, lambda: not session.runtime().in_use().get("benchmarks"))
    assert "Throughput of" in words(app)
    button(app, "See the result").click().run()
    assert not app.exception
    shown = metrics(app)
    assert shown["Answered"] == "12" and shown["Failed"] == "0"
    assert app.query_params["bench"]
