"""How far from the limit a point is, on the page; measuring the device, and when not."""

import json

import pytest
from apps import button
from streamlit.testing.v1 import AppTest

from core.bench import device_rates, files, metrics
from core.bench.device_rates import DeviceRates
from core.bench.records import Point, PointSummary, RequestRecord
from core.bench.spec import BenchSpec, Load
from core.bench.store import BenchStore, to_text
from core.errors import BenchError
from core.types import EngineSpec
from pages.parts import session

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": True,
}  # fmt: skip
ENVIRONMENT = {
    "engine": "vllm", "model": "mine", "device": "CPU", "cpu": "Some", "gpus": [], "dtype": "bfloat16",
    "settings": {"cpu_threads": 2}, "asked": {},
}  # fmt: skip
RATES = DeviceRates(
    device="Some, 2 threads", bandwidth=1e7, copy_bandwidth=1e7, read_bandwidth=1e7,
    flops={"float32": 1e12}, measured_at="2026-11-21T10:00:00+00:00",
)  # fmt: skip
PAGE = """
from pages.parts import bench_roofline, session
view = session.benchmarks().recent()[0]
bench_roofline.draw(view, view.points[0])
"""


@pytest.fixture
def made(workspace):
    """A serving benchmark of two loads on a model of the workspace: 10 and 40 tokens/s while decoding."""
    settings = session.runtime().settings
    folder = settings.models_dir / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    kept = BenchStore(session.store(), settings)
    loads = (Load(max_concurrency=1), Load(max_concurrency=4))
    spec = BenchSpec(kind="serve", loads=loads)
    number = kept.add(name="x", kind="serve", spec=spec, environment=ENVIRONMENT)
    for place, load in enumerate(loads):
        record = RequestRecord(input_len=8, output_len=11, start_s=0.0, ttft_s=0.1, e2el_s=1.1)
        records = (record,) * (load.max_concurrency or 1)
        result = metrics.serve_result(records, 1.1, metrics=("tpot",), percentiles=(50.0,), goodput={})
        point = Point(number=place, repeat=0, load=load, result=result, records=records)
        summary = PointSummary(number=place, repeat=0, load=load, result=result)
        kept.add_point(number, summary, to_text(files.to_json(point, spec, ENVIRONMENT)))
    kept.end(number, "complete")
    return settings


def page():
    app = AppTest.from_string(PAGE, default_timeout=30).run()
    assert not app.exception
    return app


def words(app):
    return "\n".join(one.value for one in [*app.markdown, *app.caption, *app.error]).replace("\\", "")


def test_an_unmeasured_device_is_named_without_a_button_where_it_is_not_this_one(made):
    app = page()
    assert "What Some, 2 threads can give hasn't been measured here yet." in words(app)
    assert not app.button


def test_the_share_of_the_limit_and_what_it_is_made_of_are_shown(made):
    device_rates._keep(made, RATES)
    app = page()
    assert "of what this memory can give" in words(app)
    shown = {one.label: one.value for one in app.metric}
    assert shown["Decoding reached"] == "10 tok/s"
    share = float(shown["Of the limit"].rstrip("%"))
    possible = float(shown["Possible"].split()[0])
    assert share == pytest.approx(1000 / possible, rel=0.06)
    assert "1.0 requests wrote together" in words(app) and "measured on 2026-11-21" in words(app)
    (chart,) = app.get("plotly_chart")
    drawn = {trace["name"]: trace for trace in json.loads(chart.proto.spec)["data"]}
    assert drawn["This point"]["y"] == [pytest.approx(10)]
    assert drawn["Other points"]["x"] == [pytest.approx(4)] and drawn["Other points"]["y"] == [
        pytest.approx(40)
    ]


def test_rates_that_were_measured_anew_are_used_at_once(made):
    device_rates._keep(made, RATES)
    before = {one.label: one.value for one in page().metric}["Possible"]
    measured_anew = {"bandwidth": 2e7, "measured_at": "2026-11-22T10:00:00+00:00"}
    device_rates._keep(made, DeviceRates(**{**json.loads(_plain(RATES)), **measured_anew}))
    assert {one.label: one.value for one in page().metric}["Possible"] != before


def test_a_device_is_measured_from_the_page_and_not_while_it_is_at_work(made, monkeypatch):
    session.runtime().load(EngineSpec(engine="scripted"))
    session.runtime().wait_ready(20)
    monkeypatch.setattr(device_rates, "device_of", lambda environment: RATES.device)
    answer = {"bandwidth": 3e9, "read": 2e9, "flops": {"float32": 1e11}}
    monkeypatch.setattr(device_rates, "_run", lambda request: answer)
    monkeypatch.setitem(ENVIRONMENT, "cores", 2)
    session.runtime().add_user("chats", lambda: 1)
    app = page()
    button(app, "Measure this device").click().run()
    assert "The engine is at work (chats)" in words(app)
    session.runtime().add_user("chats", lambda: 0)
    button(app, "Measure this device").click().run()
    assert not app.exception
    kept = device_rates.kept(made, RATES.device)
    assert (kept.bandwidth, kept.copy_bandwidth, kept.read_bandwidth) == (3e9, 3e9, 2e9)
    assert "Decode reaches" in words(page())


def test_an_engine_that_computes_elsewhere_has_no_device_to_measure(workspace):
    session.runtime().load(EngineSpec(engine="scripted"))
    session.runtime().wait_ready(20)
    with pytest.raises(BenchError, match="elsewhere"):
        device_rates.measure(session.runtime())


def test_the_worker_measures_this_machine():
    found = device_rates._run(
        {"dtypes": ["float32"], "processors": [min(device_rates.cpu_threads.allowed())]}
    )
    assert found["bandwidth"] > 1e8 and found["read"] > 1e8 and found["flops"]["float32"] > 1e8


def _plain(rates: DeviceRates) -> str:
    from dataclasses import asdict

    return json.dumps(asdict(rates))
