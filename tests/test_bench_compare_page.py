"""Comparing on the benchmark page: side by side, over time, files of vLLM's, engines in one picture."""

import json

import pytest
from apps import button
from bench_made import kept, point, record, repeats, subject
from streamlit.testing.v1 import AppTest
from waiting import until as waited

from core.bench import files
from core.bench.engines import Contender, picture
from core.bench.subjects import kept as read
from core.types import EngineSpec
from pages.parts import session

EVIL = "<script>alert(1)</script> **bold** :material/bolt: $x$"


@pytest.fixture
def ready(workspace):
    """The workspace with the scripted engine loaded."""
    session.runtime().load(EngineSpec(engine="scripted"))
    session.runtime().wait_ready(20)
    return workspace


def part(name):
    """A page with this part alone."""
    app = AppTest.from_string(f"from pages.parts import {name}\n{name}.draw()", default_timeout=30).run()
    assert not app.exception
    return app


def keep(*subjects):
    return [kept(session.store(), session.runtime().settings, one) for one in subjects]


def words(app):
    shown = [*app.markdown, *app.caption, *app.warning, *app.error, *app.info]
    return "\n".join(one.value for one in shown).replace("\\", "")


def field(elements, label):
    return next(one for one in elements if one.label == label)


def table(app, place=0):
    return app.dataframe[place].value.astype(str)


# -- side by side -------------------------------------------------------------------


def test_with_one_benchmark_the_page_says_what_is_needed(ready):
    keep(subject(repeats([1.0])))
    assert "Two benchmarks are needed" in words(part("bench_compare"))


def test_the_newest_is_held_against_the_baseline(ready):
    before, _after = keep(
        subject(repeats([1.0, 1.01, 0.99]), "before", environment={"engine_version": "0.31"}),
        subject(repeats([2.0, 2.02, 1.98]), "after", environment={"engine_version": "0.32"}),
    )
    session.benchmarks().set_baseline(before)
    app = part("bench_compare")
    assert "Worse than before" in words(app)
    assert "Output tokens/s −50%" in words(app)
    differing = table(app)
    assert differing[["What", "before", "after"]].values.tolist() == [["engine_version", "0.31", "0.32"]]
    figures = table(app, -1).set_index("Figure")
    assert figures.loc["Output tokens/s", "before"] == "110 tokens/s"
    assert figures.loc["Output tokens/s", "after against it"] == "−50%, worse"
    assert figures.loc["TTFT, mean", "after against it"] == "+0.0%, no difference shown"
    assert "TTFT, p90" not in figures.index
    app.toggle[0].set_value(True).run()
    assert "TTFT, p90" in table(app, -1)["Figure"].tolist()


def test_another_baseline_turns_the_difference_round(ready):
    _before, after = keep(
        subject(repeats([1.0, 1.01, 0.99]), "before"), subject(repeats([2.0, 2.02, 1.98]), "after")
    )
    app = part("bench_compare")
    field(app.selectbox, "Baseline").set_value(after).run()
    assert not app.exception
    assert "before against it" in table(app, -1).columns
    assert not app.error


def test_one_repeat_is_no_proof(ready):
    keep(subject(repeats([1.0]), "before"), subject(repeats([9.0]), "after"))
    app = part("bench_compare")
    assert "measure with 3 repeats or more" in words(app)
    assert not app.error
    assert "can't be told (one repeat)" in table(app, -1)["after against it"].iloc[0]


def test_names_from_outside_are_shown_letter_by_letter(ready):
    keep(subject(repeats([1.0, 1.1]), EVIL), subject(repeats([3.0, 3.1]), f"other {EVIL}"))
    app = part("bench_compare")
    for one in [*app.markdown, *app.warning, *app.error]:
        assert "<script>" not in one.value.replace("\\<", "")
        assert "**bold**" not in one.value


def test_a_deleted_benchmark_is_gone_from_the_choice(ready):
    ids = keep(*(subject(repeats([1.0]), name) for name in ("a", "b", "c")))
    part("bench_compare")
    session.benchmarks().delete(ids[0])
    app = part("bench_compare")
    assert len(field(app.multiselect, "Benchmarks").options) == 2


# -- over time ----------------------------------------------------------------------


def test_a_history_needs_the_same_workload_twice(ready):
    keep(subject(repeats([1.0]), "a"))
    assert "Nothing was measured twice yet" in words(part("bench_history"))


def test_a_history_tells_what_changed(ready):
    keep(
        subject(repeats([1.0, 2.0]), "old", environment={"model": "tiny", "engine_version": "0.31"}),
        subject(repeats([1.0]), "new", environment={"model": "tiny", "engine_version": "0.32"}),
    )
    app = part("bench_history")
    rows = table(app).set_index("Name")
    assert rows.loc["old", "Output tokens/s"] == "110, 55"
    assert rows.loc["new", "Changed since the one before"] == "engine_version 0.31 → 0.32"
    assert len(app.get("plotly_chart")) == 1


# -- files of vLLM's ----------------------------------------------------------------


def test_files_are_taken_in_and_each_wrong_one_says_why(ready):
    document = files.to_json(repeats([1.0])[0], None, {"model": "theirs"})
    document.pop("workbench")
    app = part("bench_import")
    uploader = app.get("file_uploader")[0]
    uploader.upload("theirs.json", json.dumps(document).encode())
    uploader.upload("notes.json", b"[1, 2]")
    uploader.upload("half.json", b'{"a": ').run()
    assert not app.exception
    assert "1 file taken in" in app.success[0].value
    assert [view.source for view in session.benchmarks().recent()] == ["theirs.json"]
    assert len(app.error) == 2
    assert "notes" in app.error[0].value
    app.run()
    assert len(session.benchmarks().recent()) == 1  # not once more


# -- engines in one picture ---------------------------------------------------------


def contenders(*names, **obstacles):
    found = [
        Contender(engine="scripted", title=name, spec=EngineSpec(engine="scripted", max_num_seqs=8 + place))
        for place, name in enumerate(names)
    ]
    return [
        *found,
        *(
            Contender(engine="llamacpp", title=name, spec=EngineSpec(engine="llamacpp"), obstacle=why)
            for name, why in obstacles.items()
        ),
    ]


def test_engines_that_cant_run_here_are_listed_with_their_reason(ready, monkeypatch):
    monkeypatch.setattr(
        type(session.bench_engines()),
        "contenders",
        lambda *_: contenders("one", other="llama.cpp is missing: run make llamacpp"),
    )
    app = part("bench_engines")
    assert "run make llamacpp" in words(app)
    assert button(app, "Compare engines").disabled  # one alone is no comparison


def test_the_picture_comes_when_all_are_done(ready, monkeypatch):
    monkeypatch.setattr(type(session.bench_engines()), "contenders", lambda *_: contenders("one", "two"))
    app = part("bench_engines")
    field(app.number_input, "At once").set_value(4).run()
    field(app.number_input, "Prompt tokens").set_value(8).run()
    field(app.number_input, "Answer tokens").set_value(4).run()
    button(app, "Compare engines").click().run()
    assert not app.exception
    waited(lambda: not session.bench_engines().now().is_live, timeout_s=60)
    app.run()
    assert not app.exception
    assert [entry.state for entry in session.bench_engines().now().entries] == ["done", "done"]
    shown = app.dataframe[0].value
    assert {"1 at once", "4 at once"} <= set(shown.columns)
    waited(lambda: session.runtime().status().phase == "ready", timeout_s=20)
    assert session.runtime().status().spec == EngineSpec(engine="scripted")


def test_a_picture_has_a_bar_for_each_engine_and_load(ready):
    points = repeats([1.0, 1.1])
    (kept_id,) = keep(subject(points, "a", environment={"engine": "vllm"}))
    (bar,) = picture([read(session.benchmarks(), kept_id)])
    assert (bar.title, bar.figure.n) == ("vLLM", 2)
    assert bar.figure.value == pytest.approx(220 / 2.1)


def test_details_come_back_from_disk(ready):
    (kept_id,) = keep(subject([point([record(0.2)])], "a"))
    found = read(session.benchmarks(), kept_id)
    assert found.points[0].records[0].ttft_s == pytest.approx(0.2)
    session.benchmarks().path(kept_id, 0).unlink()
    assert read(session.benchmarks(), kept_id).points[0].records == ()
