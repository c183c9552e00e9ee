"""The benchmark page, run as Streamlit runs it, with the scripted engine."""

import html
import json

import pytest
from apps import button, opened, turned_to, until

from core.bench.spec import BenchSpec, Load, RandomWorkload, TableWorkload
from core.errors import WorkbenchError
from core.run_spec import PromptSpec
from pages.parts import bench_actions, session

SMALL = RandomWorkload(num_prompts=6, input_len=12, output_len=4)


@pytest.fixture
def app(workspace):
    return opened("benchmark")


@pytest.fixture
def slow(workspace, monkeypatch):
    """The page over an engine that takes long enough to be caught in the middle."""
    monkeypatch.setenv("WORKBENCH_SCRIPTED_TOKENS_PER_S", "40")
    return opened("benchmark")


def words(app):
    """All that is written, without what escapes it."""
    texts = [*app.markdown, *app.caption, *app.info, *app.error, *app.warning, *app.subheader]
    return "\n".join(one.value for one in texts).replace("\\", "")


def metrics(app):
    return {one.label: one.value for one in app.metric}


def choose(app, label, value):
    next(one for one in app.segmented_control if one.label == label).set_value(value).run()
    assert not app.exception


def field(app, label):
    every = [*app.number_input, *app.text_input, *app.selectbox, *app.text_area, *app.toggle]
    return next(one for one in every if one.label == label)


def fill(app, **values):
    """Fields by their labels, with _ for a space."""
    for label, value in values.items():
        field(app, label.replace("_", " ")).set_value(value).run()
        assert not app.exception


def press(app, label):
    button(app, label).click().run()
    assert not app.exception


def is_idle():
    return session.benchmarks().at_work() is None


def measured(app, spec):
    """A benchmark that has ended, by the way beside the page."""
    benchmark_id = session.benchmarks().start(spec)
    until(app, is_idle)
    return benchmark_id


def test_a_throughput_benchmark_is_set_up_run_and_looked_at(app):
    fill(app, Prompts=12, Tokens_in=20, Tokens_out=5)
    assert "12 random prompts, 20 tokens in, 5 out" in words(app)
    press(app, "Start")
    until(app, is_idle)
    press(app, "See the result")
    shown = metrics(app)
    assert shown["Answered"] == "12" and shown["Failed"] == "0"
    assert app.query_params["bench"] == session.benchmarks().recent()[0].benchmark_id
    for view in ("latency", "requests", "engine", "limit", "conditions"):
        choose(app, "Details", view)
        assert not app.error
    assert session.benchmarks().recent()[0].spec.workload.output_len == 5


def test_the_time_is_told_once_something_alike_was_measured(app):
    assert "how long is known once" in words(app)
    measured(app, BenchSpec(kind="throughput", workload=SMALL))
    app.run()
    assert "about" in words(app) and "how long is known once" not in words(app)


def test_serving_at_several_loads_makes_a_point_for_each(app):
    choose(app, "Measure", "serve")
    fill(app, Prompts=6, Tokens_in=12, Tokens_out=4, Repeats=2)
    choose(app, "Load", "concurrency")
    field(app, "Requests at once").set_value("1, 3").run()
    fill(app, **{"TTFT (ms)": 60_000.0})
    assert "4 times" in words(app)
    press(app, "Start")
    until(app, is_idle)
    press(app, "See the result")
    (table, *_more) = app.dataframe
    assert list(table.value["Load"]) == ["1 at once", "1 at once", "3 at once", "3 at once"]
    assert "Goodput/s" in table.value and field(app, "Latency").value == "p99_ttft_ms"
    point = field(app, "Look at one of 4 points")
    assert point.options[-1] == "3 at once, repeat 2"
    point.set_value(3).run()
    assert not app.exception and metrics(app)["Answered"] == "6"


def test_a_sweep_and_rates_that_come_in_bursts_become_what_was_entered(app):
    choose(app, "Measure", "serve")
    choose(app, "Load", "sweep")
    fill(app, Prompts=4, Tokens_in=8, Tokens_out=2, Points_at_most=3, From=2.0)
    assert "at most 3 times" in words(app)
    press(app, "Start")
    until(app, is_idle)
    spec = session.benchmarks().recent()[0].spec
    assert (spec.sweep.over, spec.sweep.start, spec.sweep.most_points) == ("max_concurrency", 2.0, 3)
    choose(app, "Load", "rates")
    field(app, "Requests per second").set_value("500, inf").run()
    field(app, "They come").set_value("gamma").run()
    fill(app, Burstiness=0.25)
    press(app, "Start")
    until(app, is_idle)
    newest = session.benchmarks().recent()[0]
    assert [load.request_rate for load in newest.spec.loads] == [500.0, None]
    assert {(load.arrivals, load.burstiness) for load in newest.spec.loads} == {("gamma", 0.25)}
    assert newest.state == "complete" and len(newest.points) == 2


def test_latency_measures_batches(app):
    choose(app, "Measure", "latency")
    fill(app, Tokens_in=8, Tokens_out=3, Requests_in_a_batch=2, Batches_measured=4)
    assert "4 batches of 2 prompts, 8 tokens in, 3 out" in words(app)
    press(app, "Start")
    until(app, is_idle)
    press(app, "See the result")
    assert "Batch latency" in metrics(app)
    assert list(app.dataframe[0].value) == ["p10", "p25", "p50", "p75", "p90", "p99"]


@pytest.mark.parametrize(
    ("entered", "said"),
    [("", "No load is given"), ("two", "'two' is not a whole number"), ("0", "'0' is not a number above 0")],
)
def test_a_load_that_makes_no_sense_is_said_where_start_is(app, entered, said):
    choose(app, "Measure", "serve")
    choose(app, "Load", "concurrency")
    field(app, "Requests at once").set_value(entered).run()
    assert said in words(app) and app.button(key="bench:start").disabled


def test_percentiles_that_are_none_are_said(app):
    fill(app, Percentiles="50, 101")
    assert "percentiles lie between 0 and 100" in words(app) and app.button(key="bench:start").disabled


def test_what_does_not_fit_the_context_is_refused_with_figures(app):
    fill(app, Tokens_in=10_000_000)
    assert "10,000,064 tokens does not fit" in words(app) and app.button(key="bench:start").disabled


def test_nothing_starts_without_an_engine(app):
    session.runtime().unload()
    until(app, lambda: session.runtime().status().phase == "empty")
    assert "Load a model first" in words(app) and app.button(key="bench:start").disabled


# -- what is asked ------------------------------------------------------------------


def test_the_example_table_is_measured_under_a_template(app):
    choose(app, "What is asked", "table")
    assert "Is this review of" in field(app, "Template").value
    fill(app, Rows=5, Tokens_out=3)
    assert "up to 5 rows of reviews.csv, 3 tokens out" in words(app)
    press(app, "Start")
    until(app, is_idle)
    (view,) = session.benchmarks().recent()
    assert view.state == "complete" and view.points[0].result["completed"] == 5
    assert view.name == "Throughput: reviews.csv"
    press(app, "See the result")
    press(app, "Change")
    assert field(app, "Table").value == "kept" and field(app, "Rows").value == 5
    press(app, "Start")
    until(app, is_idle)
    assert session.benchmarks().recent()[0].spec == view.spec


def test_a_template_that_cannot_be_used_is_said(app):
    choose(app, "What is asked", "table")
    field(app, "Template").set_value("{{ nonsense }}").run()
    assert "nonsense" in app.error[0].value and app.button(key="bench:start").disabled


def test_a_table_of_the_batch_page_is_measured_and_stays_when_its_run_goes(app, tmp_path):
    rows = tmp_path / "mine.csv"
    rows.write_text("word\napple\npear\nplum\n")
    run = session.jobs().stage_later(rows, name="mine.csv").future.result(20)
    choose(app, "What is asked", "table")
    field(app, "Table").set_value(run.run_id).run()
    assert field(app, "Template").value == "{{ word }}"
    fill(app, Rows=3, Tokens_out=2)
    session.jobs().delete(run.run_id)
    spec_path = next((session.runtime().settings.benchmarks_dir / "files").glob("run-*.parquet"))
    app.run()
    assert not app.exception and spec_path.is_file()


def test_a_file_of_conversations_is_kept_under_its_name(app):
    choose(app, "What is asked", "sharegpt")
    assert app.button(key="bench:start").disabled
    talk = [
        {"from": "human", "value": "Name a long river of Europe, and the sea that it flows to."},
        {"from": "gpt", "value": "The Loire is one of them."},
    ]
    data = json.dumps([{"conversations": talk}] * 4).encode()
    uploader = next(one for one in app.file_uploader if one.label == "A file of conversations")
    uploader.set_value(("../talks.json", data, "application/json")).run()
    assert not app.exception
    fill(app, Prompts=3)
    assert "3 conversations of" in words(app) and "talks.json" in words(app)
    press(app, "Start")
    until(app, is_idle)
    (view,) = session.benchmarks().recent()
    assert view.state == "complete", view.message
    assert view.points[0].result["completed"] == 3
    assert ".." not in view.spec.workload.path
    press(app, "See the result")
    press(app, "Change")
    assert "3 conversations of" in words(app) and "talks.json" in words(app)


def test_a_batch_file_is_measured_as_its_lines_say(app, tmp_path):
    body = {"messages": [{"role": "user", "content": "apple"}], "max_tokens": 3}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({**line, "custom_id": number}) for number in ("a", "b")))
    run = session.jobs().stage_later(path, name="lines.jsonl").future.result(20)
    choose(app, "What is asked", "table")
    field(app, "Table").set_value(run.run_id).run()
    assert "each line says itself what is asked" in words(app)
    press(app, "Start")
    until(app, is_idle)
    (view,) = session.benchmarks().recent()
    assert (view.state, view.message) == ("complete", "")
    assert view.points[0].result["total_num_tokens"] > 0


def test_parameters_and_adapters_of_rows_stay_in_a_form_that_has_no_fields_for_them(app, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("word,most\napple,2\npear,3\n")
    prompt = PromptSpec(template="{{ word }}", param_columns={"max_tokens": "most"}, adapter="base")
    workload = TableWorkload(path=str(rows), prompt=prompt, num_prompts=2)
    benchmark_id = measured(app, BenchSpec(kind="throughput", workload=workload))
    app.query_params["bench"] = benchmark_id
    app.run()
    press(app, "Change")
    assert "Also asked: max_tokens from the column most, adapter base." in html.unescape(words(app))
    press(app, "Start")
    until(app, is_idle)
    assert session.benchmarks().recent()[0].spec.workload == workload


def test_an_end_that_the_full_disk_did_not_take_is_shown_with_its_reason(app, monkeypatch):
    def full(*_values):
        raise WorkbenchError("The catalogue can't be written: database or disk is full.")

    monkeypatch.setattr(session.benchmarks()._kept, "end", full)
    fill(app, Prompts=4, Tokens_in=8, Tokens_out=2)
    press(app, "Start")
    until(app, is_idle)
    assert "Its end is not written down yet." in words(app) and "disk is full" in words(app)
    press(app, "See the result")
    assert "disk is full" in app.warning[0].value and metrics(app)["Answered"] == "4"


def test_a_form_says_that_its_table_went_with_the_benchmark(app, tmp_path):
    rows = tmp_path / "mine.csv"
    rows.write_text("word\napple\npear\n")
    run = session.jobs().stage_later(rows, name="mine.csv").future.result(20)
    choose(app, "What is asked", "table")
    field(app, "Table").set_value(run.run_id).run()
    press(app, "Start")
    until(app, is_idle)
    session.jobs().delete(run.run_id)
    press(app, "See the result")
    press(app, "Change")
    assert "rows of mine.csv" in words(app)
    (view,) = session.benchmarks().recent()
    session.benchmarks().delete(view.benchmark_id)
    app.run()
    assert not app.exception
    assert "is not there any more. Choose it again." in words(app)
    assert app.button(key="bench:start").disabled


# -- while it runs, and afterwards ------------------------------------------------------


def test_a_benchmark_is_seen_by_everybody_and_stopped_keeping_what_is_done(slow):
    workload = RandomWorkload(num_prompts=60, input_len=8, output_len=20)
    spec = BenchSpec(kind="serve", workload=workload, loads=(Load(max_concurrency=2),), num_warmups=0)
    benchmark_id = session.benchmarks().start(spec)
    until(slow, lambda: (view := session.benchmarks().view(benchmark_id)).progress and view.progress.done > 2)
    assert "measuring" in words(slow) and "60" in metrics(slow)["Done"]
    turned_to(slow, "home")
    turned_to(slow, "benchmark")  # it goes on when the page is left
    press(slow, "Stop")
    until(slow, is_idle)
    assert "stopped" in words(slow)
    press(slow, "See the result")
    assert "was stopped before its last request" in words(slow)
    assert 0 < int(metrics(slow)["Answered"]) < 60


def test_a_result_is_renamed_made_the_baseline_changed_and_deleted(app):
    benchmark_id = measured(app, BenchSpec(kind="throughput", workload=SMALL, name="first"))
    choose(app, "Section", "results")
    press(app, "Open")
    next(one for one in app.text_input if one.label == "Name").set_value(":red[mine]")
    press(app, "Rename")
    assert session.benchmarks().view(benchmark_id).name == ":red[mine]"
    assert ":red[" not in app.subheader[0].value
    press(app, "Make it the baseline")
    assert session.benchmarks().view(benchmark_id).is_baseline
    press(app, "Change")
    assert field(app, "Prompts").value == 6 and "bench" not in app.query_params
    choose(app, "Section", "results")
    press(app, "Open")
    press(app, "Delete")
    press(app, "Yes")
    assert session.benchmarks().recent() == () and "Nothing was measured yet" in words(app)


def test_a_result_is_repeated_on_what_is_loaded(app):
    spec = BenchSpec(kind="throughput", workload=SMALL, name="again", group="a search")
    measured(app, spec)
    choose(app, "Section", "results")
    press(app, "Open")
    press(app, "Repeat")
    until(app, is_idle)
    newest, first = session.benchmarks().recent()
    assert first.spec == spec  # the repeat asks the same, and is no part of that search
    assert newest.spec == spec.model_copy(update={"group": ""})
    assert button(app, "See the result")


def test_a_result_is_held_against_the_baseline(app):
    baseline = measured(app, BenchSpec(kind="throughput", workload=SMALL, name="before"))
    session.benchmarks().set_baseline(baseline)
    newest = measured(app, BenchSpec(kind="throughput", workload=SMALL, name="after"))
    app.query_params["bench"] = newest
    app.run()
    press(app, "Compare")
    assert next(one for one in app.multiselect if one.label == "Benchmarks").value == [baseline, newest]
    assert "bench" not in app.query_params


def test_what_is_downloaded_reads_back(app):
    spec = BenchSpec(
        kind="serve", workload=SMALL, loads=(Load(max_concurrency=1), Load(max_concurrency=2)), name="two"
    )
    benchmark_id = measured(app, spec)
    view = session.benchmarks().view(benchmark_id)
    text = bench_actions.as_json(view)
    assert [json.loads(line)["completed"] for line in text.splitlines()] == [6, 6]
    imported = session.benchmarks().import_file("two.jsonl", text.encode())
    assert len(session.benchmarks().view(imported).points) == 2
    app.query_params["bench"] = imported
    app.run()
    assert not app.exception and "imported" not in app.query_params
    assert "from two.jsonl" in words(app)


def test_a_file_of_vllm_without_details_says_what_it_lacks(app):
    result = {
        "date": "20261121-120000", "endpoint_type": "vllm", "backend": "vllm", "model_id": "big",
        "tokenizer_id": "big", "num_prompts": 4, "request_rate": "inf", "burstiness": 1.0,
        "max_concurrency": 2, "duration": 2.0, "completed": 3, "failed": 1, "total_input_tokens": 30,
        "total_output_tokens": 60, "request_throughput": 1.5, "request_goodput": None,
        "output_throughput": 30.0, "total_token_throughput": 45.0, "max_output_tokens_per_s": 40.0,
        "max_concurrent_requests": 2, "mean_ttft_ms": 12.0, "median_ttft_ms": 11.0, "std_ttft_ms": 1.0,
        "p99_ttft_ms": 15.0,
    }  # fmt: skip
    app.query_params["bench"] = session.benchmarks().import_file("<b>.json", json.dumps(result).encode())
    app.run()
    assert not app.exception
    assert metrics(app)["Failed"] == "1" and metrics(app)["TTFT, median"] == "11 ms"
    assert "TPOT, median" not in metrics(app)
    assert "from <b>.json" in words(app) and "big" in words(app)
    for view in ("speed", "latency", "requests", "engine", "limit", "conditions"):
        choose(app, "Details", view)
        assert not app.error
    choose(app, "Details", "requests")
    assert "--save-detailed" in words(app)


def test_an_address_of_what_is_gone_is_said(app):
    app.query_params["bench"] = "gone"
    app.run()
    assert "There is no benchmark" in words(app)
    press(app, "All results")
    assert "Nothing was measured yet" in words(app) and "bench" not in app.query_params


def test_many_results_are_searched(app):
    for number in range(9):
        text = json.dumps({"elapsed_time": 2.0, "num_requests": 4, "total_num_tokens": 80 + number,
                           "requests_per_second": 2.0, "tokens_per_second": 40.0})  # fmt: skip
        session.benchmarks().import_file(f"file-{number}.json", text.encode())
    choose(app, "Section", "results")
    assert "9 benchmarks in this workspace" in words(app)
    fill(app, Search="FILE-7")
    assert "file-7.json" in words(app) and "file-3.json" not in words(app)
    fill(app, Search="nothing")
    assert "None is called so." in words(app)


@pytest.mark.parametrize("name", ["run", "results", "compare", "history", "engines"])
def test_every_section_is_drawn_in_an_empty_workspace(app, name):
    choose(app, "Section", name)
    assert not app.error
