"""Results as files: in vLLM's form and back without loss, and nothing believed that comes from outside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core import machine
from core.bench import file_reading, files, metrics
from core.bench.records import EngineSample, Point, RequestRecord
from core.bench.spec import BenchSpec, Load, RandomWorkload
from core.engines.scripted import ScriptedEngine
from core.errors import BenchError
from core.types import EngineSpec

# what `vllm bench serve --save-result --save-detailed` 0.32 writes of two requests, one of which failed
SERVED: dict[str, Any] = {
    "date": "20261121-171500",
    "endpoint_type": "openai",
    "backend": "openai",
    "label": None,
    "model_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "tokenizer_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "num_prompts": 2,
    "request_rate": 4.0,
    "burstiness": 0.5,
    "max_concurrency": 8,
    "duration": 2.0,
    "completed": 1,
    "failed": 1,
    "total_input_tokens": 10,
    "total_output_tokens": 3,
    "request_throughput": 0.5,
    "request_goodput": None,
    "output_throughput": 1.5,
    "total_token_throughput": 6.5,
    "input_lens": [10, 12],
    "output_lens": [3, 0],
    "ttfts": [0.2, 0.0],
    "itls": [[0.1, 0.3], []],
    "latencies": [0.6, 0.0],
    "start_times": [5000.25, 5000.75],
    "queue_times": [0.0, 0.125],
    "generated_texts": ["so it is", ""],
    "errors": ["", "Bad Request"],
    "max_output_tokens_per_s": 3.0,
    "max_concurrent_requests": 1,
    "rtfx": 0.0,
    "mean_ttft_ms": 200.0,
    "p99_ttft_ms": 200.0,
}
DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors")
THROUGHPUT = {
    "model_id": "m",
    "elapsed_time": 4.0,
    "num_requests": 8,
    "total_num_tokens": 800,
    "requests_per_second": 2.0,
    "tokens_per_second": 200.0,
}
LATENCY = {
    "model_id": "m",
    "avg_latency": 1.5,
    "latencies": [1.0, 2.0],
    "percentiles": {"10": 1.1, "50": 1.5, "99": 1.99},
}
RECORDS = (
    RequestRecord(
        input_len=10,
        output_len=3,
        start_s=0.0,
        ttft_s=0.0,  # measured, and that quick
        itls_s=(0.1, 0.3),
        e2el_s=0.4,
        queue_s=0.01,
        cached_tokens=4,
        finish_reason="length",
    ),
    RequestRecord(input_len=12, output_len=2, start_s=0.25, e2el_s=1.0, finish_reason="stop"),
    RequestRecord(input_len=40, output_len=0, start_s=0.5, error="The prompt is too long."),
)
SAMPLES = (
    EngineSample(
        at_s=0.5,
        output_tokens=7,
        prompt_tokens=60,
        running=2,
        waiting=1,
        kv_cache_usage=0.25,
        prefix_queries=60,
        prefix_hits=16,
        cpu_percent=180.5,
        ram_bytes=123,
    ),
)


def data(document: Any) -> bytes:
    return json.dumps(document).encode()


def changed(document: dict[str, Any], **values: Any) -> bytes:
    return data(document | values)


@pytest.fixture
def environment() -> dict[str, Any]:
    engine = ScriptedEngine(EngineSpec(engine="scripted", max_num_seqs=16))
    return files.environment(engine.info, engine.spec, machine.describe())


def measured(kind: str) -> Point:
    result = {
        "serve": lambda: metrics.serve_result(RECORDS, 2.0, goodput={"e2el": 500}),
        "throughput": lambda: metrics.throughput_result(RECORDS, 2.0),
        "latency": lambda: metrics.latency_result([1.0, 3.0], RECORDS),
    }[kind]()
    load = Load(request_rate=3, max_concurrency=2, arrivals="constant") if kind == "serve" else None
    return Point(
        number=4, repeat=1, load=load, result=result, records=RECORDS, samples=SAMPLES, is_whole=False
    )


class TestOurs:
    @pytest.mark.parametrize("kind", ["serve", "throughput", "latency"])
    def test_a_point_comes_back_as_it_went(self, kind, environment):
        point = measured(kind)
        spec = BenchSpec(kind=kind, workload=RandomWorkload(num_prompts=3))
        text = json.dumps(files.to_json(point, spec, environment), allow_nan=False).encode()
        contents = files.load(text)
        (read,) = contents.points
        assert (contents.kind, contents.spec, contents.environment) == (kind, spec, environment)
        assert (read.records, read.samples, read.load) == (point.records, point.samples, point.load)
        assert (read.repeat, read.is_whole) == (1, False)
        assert {name: read.result[name] for name in point.result} == point.result

    def test_a_serving_point_has_the_fields_of_vllm(self, environment):
        document = files.to_json(measured("serve"), BenchSpec(kind="serve"), environment)
        assert set(SERVED) - {"generated_texts", "p99_ttft_ms"} <= set(document)
        assert document["request_rate"] == 3
        assert document["burstiness"] == "inf"
        assert document["model_id"] == "scripted"
        assert document["num_prompts"] == 3
        assert list(document)[-1] == "workbench"

    @pytest.mark.parametrize(("kind", "theirs"), [("throughput", THROUGHPUT), ("latency", LATENCY)])
    def test_the_other_kinds_have_vllms_fields_and_ours_beside_them(self, kind, theirs, environment):
        document = files.to_json(measured(kind), BenchSpec(kind=kind), environment)
        assert set(document) == {*theirs, "workbench"}

    def test_all_at_once_is_vllms_infinite_rate(self, environment):
        point = Point(number=0, repeat=0, load=Load(max_concurrency=4), result={"duration": 1.0})
        document = files.to_json(point, BenchSpec(kind="serve"), environment)
        assert (document["request_rate"], document["max_concurrency"]) == ("inf", 4)

    def test_no_answers_are_kept(self, environment):
        document = files.to_json(measured("serve"), BenchSpec(kind="serve"), environment)
        assert "generated_texts" not in document

    def test_the_environment_names_no_folder_no_address_and_no_key(self):
        spec = EngineSpec(
            engine="openai", model="/home/somebody/model", base_url="http://10.0.0.7/v1", max_num_seqs=3
        )
        engine = ScriptedEngine(spec)
        text = json.dumps(files.environment(engine.info, spec, machine.describe()))
        assert "somebody" not in text and "10.0.0.7" not in text
        assert '"max_num_seqs": 3' in text


class TestVllms:
    def test_a_detailed_serving_result(self):
        kind, (point,) = files.read(data(SERVED))
        first, failed = point.records
        assert kind == "serve"
        assert point.load == Load(request_rate=4, max_concurrency=8, arrivals="gamma", burstiness=0.5)
        assert first == RequestRecord(
            input_len=10, output_len=3, start_s=0.0, ttft_s=0.2, itls_s=(0.1, 0.3), e2el_s=0.6
        )
        assert (failed.start_s, failed.queue_s, failed.error) == (0.5, 0.125, "Bad Request")
        assert failed.ttft_s is failed.e2el_s is None, "vLLM's 0 is no measurement"
        assert point.result["p99_ttft_ms"] == 200.0
        assert "generated_texts" not in point.result and "itls" not in point.result
        assert files.load(data(SERVED)).environment == {
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "engine": "openai",
            "tokenizer": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "date": "20261121-171500",
        }

    def test_its_figures_can_be_computed_again_from_its_details(self):
        _kind, (point,) = files.read(data(SERVED))
        again = metrics.serve_result(point.records, point.result["duration"], percentiles=(99,))
        for name in ("completed", "failed", "output_throughput", "total_token_throughput", "p99_ttft_ms"):
            assert again[name] == point.result[name]

    def test_without_details_there_are_no_records(self):
        """0.32 leaves two of the lists in the file all the same."""
        short = {name: value for name, value in SERVED.items() if name not in DETAILS}
        _kind, (point,) = files.read(data(short))
        assert point.records == ()
        assert point.result["output_throughput"] == 1.5
        assert "latencies" not in point.result

    def test_details_of_older_versions_lack_latencies(self):
        old = {name: value for name, value in SERVED.items() if name not in ("latencies", "queue_times")}
        _kind, (point,) = files.read(data(old))
        assert point.records[0].e2el_s == pytest.approx(0.6)
        assert point.records[1].e2el_s is None

    def test_a_time_to_first_token_of_0_was_not_measured(self):
        """A server that doesn't stream: vLLM has no other word for it."""
        _kind, (point,) = files.read(changed(SERVED, ttfts=[0.0, 0.0], itls=[[], []]))
        assert point.records[0].ttft_s is None
        assert point.records[0].e2el_s == 0.6

    def test_a_request_that_was_never_sent_has_no_time(self):
        _kind, (point,) = files.read(changed(SERVED, start_times=[5000.25, 0.0], queue_times=[0.0, -5000.0]))
        assert [(record.start_s, record.queue_s) for record in point.records] == [(0, 0), (0, 0)]

    def test_appended_results_are_points(self):
        lines = b"\n".join(changed(SERVED, request_rate=rate, burstiness=1.0) for rate in (1.0, 2.0, "inf"))
        _kind, points = files.read(lines)
        assert [point.number for point in points] == [0, 1, 2]
        assert [point.load.request_rate for point in points] == [1, 2, None]
        assert points[0].load.arrivals == "poisson"

    def test_equal_gaps_are_an_infinite_burstiness(self):
        """vLLM writes it as JSON has no word for it."""
        text = json.dumps(SERVED | {"burstiness": float("inf")})
        assert "Infinity" in text
        _kind, (point,) = files.read(text.encode())
        assert point.load.arrivals == "constant"

    def test_a_rate_that_grew_is_no_load(self):
        _kind, (point,) = files.read(changed(SERVED, request_rate="inf", ramp_up_strategy="linear"))
        assert point.load is None
        assert point.result["ramp_up_strategy"] == "linear"

    def test_a_throughput_result(self):
        kind, (point,) = files.read(json.dumps(THROUGHPUT, indent=4).encode("utf-8-sig"))
        assert (kind, point.load, point.records) == ("throughput", None, ())
        assert point.result == THROUGHPUT

    def test_a_latency_result(self):
        kind, (point,) = files.read(json.dumps(LATENCY, indent=4).encode())
        assert (kind, point.load) == ("latency", None)
        assert point.result == LATENCY

    @pytest.mark.parametrize("document", [SERVED, THROUGHPUT, LATENCY])
    def test_once_imported_it_is_kept_and_read_again(self, document):
        """An import is kept in our own form, without a specification."""
        contents = files.load(data(document))
        text = json.dumps(files.to_json(contents.points[0], None, contents.environment), allow_nan=False)
        again = files.load(text.encode())
        assert again.kind == contents.kind
        assert again.spec is None
        assert again.points[0].records == contents.points[0].records
        assert again.points[0].load == contents.points[0].load
        assert again.environment == contents.environment
        theirs = contents.points[0].result
        assert {name: again.points[0].result[name] for name in theirs} == theirs


class TestUntrusted:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "is empty"),
            (b" \n ", "is empty"),
            (b"\xff\xfe\x00", "no text in UTF-8"),
            (b"id,text\n1,tea\n", "no JSON"),
            (b"[1, 2]", "no result of a benchmark"),
            (b'"text"', "no result of a benchmark"),
            (b"{}", "no result of `vllm bench`"),
            (b'{"a": 1}\n{"b": 2}', "no result of `vllm bench`"),
            (data(THROUGHPUT) + b"\n{oops", "Line 2 is no JSON"),
            (data(THROUGHPUT) + b"\n" + data(LATENCY), "different kinds: latency, throughput"),
            (b"[" * 100_000, "nested too deeply"),
            (b"\n".join([b"{}"] * 1001), "1,001 lines"),
            (changed(SERVED, total_input_sequences=3), "embeddings"),
            (changed(SERVED, completed="many"), "field completed of the result is no number"),
            (changed(SERVED, failed="x"), "field failed of the result is no number"),
            (changed(SERVED, duration=-1), "field duration of the result is no number from 0 up"),
            (changed(SERVED, p99_ttft_ms="x"), "field p99_ttft_ms of the result is no number"),
            (changed(SERVED, request_goodput=True), "field request_goodput of the result is no number"),
            (changed(SERVED, start_times=[1.0, 1e15]), "start_times .* 30 days"),
            (changed(SERVED, itls=[[-1.0], []]), "itls .* below 0"),
            (changed(SERVED, itls=[[1e6, 1e6, 1e6], []]), "itls .* 30 days"),
            (changed(SERVED, ttfts=[-0.1, 0]), "ttfts .* no time"),
            (changed(SERVED, latencies=[1e9, 0]), "latencies .* 30 days"),
            (changed(LATENCY, latencies=[1.0, -1.0]), "latencies .* below 0"),
            (changed(SERVED, completed=True), "field completed of the result is no number"),
            (b'{"avg_latency": 1' + b"0" * 400 + b"}", "avg_latency of the result is no number"),
            (b'{"avg_latency": 1' + b"0" * 5000 + b"}", "no JSON"),
            (b'{"avg_latency": NaN}', "avg_latency of the result is no number"),
            (changed(SERVED, itls=[[0.1]]), "differ in length"),
            (changed(SERVED, queue_times=[0.1]), "differ in length"),
            (changed(SERVED, itls=[[0.1], "x"]), "itls"),
            (changed(SERVED, ttfts=["x", 0.0]), "ttfts"),
            (changed(SERVED, input_lens=[1.5, 2]), "input_lens"),
            (changed(SERVED, output_lens=[-1, 2]), "output_lens"),
            (changed(SERVED, start_times=[None, 1]), "start_times"),
            (changed(SERVED, errors=[7, ""]), "errors"),
            (changed(SERVED, request_rate=-1), "load in the result is not valid"),
            (changed(SERVED, request_rate={}), "load in the result is not valid"),
            (changed(SERVED, max_concurrency=0), "load in the result is not valid"),
            (changed(LATENCY, latencies=[None]), "latencies"),
            (changed(LATENCY, percentiles=[1]), "percentiles"),
            (changed(THROUGHPUT, **{f"x{n}": n for n in range(600)}), "606 fields"),
            (changed(THROUGHPUT, workbench=[]), '"workbench"'),
            (changed(THROUGHPUT, workbench={"result": []}), '"result"'),
            (changed(THROUGHPUT, workbench={"spec": {"kind": "serve", "x": 1}}), "specification"),
            (changed(THROUGHPUT, workbench={"load": {"request_rate": 0}}), "load"),
            (changed(THROUGHPUT, workbench={"samples": {"at_s": [1]}}), '"samples"'),
            (changed(THROUGHPUT, workbench={"environment": "x"}), '"environment"'),
            (changed(THROUGHPUT, workbench={"environment": {"x": "y" * 70_000}}), '"environment"'),
            (changed(THROUGHPUT, workbench={"repeat": "0"}), "repeat"),
        ],
    )
    def test_anything_else_is_refused_with_the_reason(self, content, said):
        with pytest.raises(BenchError, match=said) as caught:
            files.read(content)
        assert len(caught.value.message) < 1500
        assert caught.value.hint

    def test_a_file_that_is_too_large_is_not_even_parsed(self, monkeypatch):
        monkeypatch.setattr(file_reading, "MAX_BYTES", 10)
        with pytest.raises(BenchError, match="results are read up to"):
            files.read(data(THROUGHPUT))

    def test_long_and_broken_texts_are_cut_and_mended(self):
        text = changed(THROUGHPUT, model_id="m" * 5000, label="half \ud800")
        _kind, (point,) = files.read(text)
        assert len(point.result["model_id"]) == 1000
        assert point.result["label"] == "half ?"
        assert len(files.load(text).environment["model"]) == 1000

    def test_a_broken_sample_is_refused(self, environment):
        document = files.to_json(measured("serve"), BenchSpec(kind="serve"), environment)
        for name, value in (("running", None), ("at_s", "x"), ("cpu_percent", "x"), ("output_tokens", -1)):
            broken = json.loads(json.dumps(document))
            broken["workbench"]["samples"][name] = [value]
            with pytest.raises(BenchError, match=name):
                files.read(data(broken))
        document["workbench"]["samples"]["running"] = [1, 2]
        with pytest.raises(BenchError, match="differ in length"):
            files.read(data(document))

    @hypothesis_settings(deadline=None, max_examples=200)
    @given(st.data())
    def test_whatever_a_field_holds_it_is_read_or_refused(self, draw):
        """Never another exception, and never a figure that JSON has no word for."""
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
            max_leaves=6,
        )
        base = draw.draw(st.sampled_from([SERVED, THROUGHPUT, LATENCY]))
        name = draw.draw(st.sampled_from([*base, "workbench", "queue_times"]))
        try:
            contents = files.load(json.dumps(base | {name: draw.draw(values)}).encode())
        except BenchError:
            return
        for point in contents.points:
            json.dumps(files.to_json(point, contents.spec, contents.environment), allow_nan=False)
