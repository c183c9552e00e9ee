"""The pictures of a benchmark, from hand-made requests and samples; and how long one will take."""

import datetime as dt

import numpy as np
import pytest

from core.bench.outlook import outlook
from core.bench.records import BenchView, EngineSample, PointSummary, RequestRecord
from core.bench.spec import BenchSpec, Load, RandomWorkload, Sweep, TableWorkload
from core.errors import ParameterError
from core.run_spec import PromptSpec
from pages.parts import bench_charts, bench_sweep_charts, bench_words
from pages.parts.bench_load import numbers


def sample(at_s, **values):
    known = {
        "output_tokens": 0, "prompt_tokens": 0, "running": 0, "waiting": 0, "kv_cache_usage": None,
        "prefix_queries": 0, "prefix_hits": 0,
    }  # fmt: skip
    return EngineSample(at_s=at_s, **{**known, **values})


def record(start_s, **values):
    known = {"input_len": 10, "output_len": 3, "ttft_s": 0.1, "itls_s": (0.05, 0.05), "e2el_s": 0.2}
    return RequestRecord(start_s=start_s, **{**known, **values})


def summary(number, load, tokens_per_s, latency_ms, repeat=0, goodput=None):
    result = {
        "duration": 10.0, "completed": 10, "failed": 0, "total_output_tokens": int(tokens_per_s * 10),
        "output_throughput": tokens_per_s, "p99_ttft_ms": latency_ms, "request_goodput": goodput,
    }  # fmt: skip
    return PointSummary(number=number, repeat=repeat, load=load, result=result)


# -- over time ----------------------------------------------------------------------


def test_a_rate_is_what_was_added_over_the_window_before_it():
    samples = [
        sample(at_s, output_tokens=tokens) for at_s, tokens in ((0, 0), (0.5, 50), (1.5, 250), (2, 250))
    ]
    rates = bench_charts.rates(samples, lambda one: one.output_tokens)
    assert rates == [None, 100.0, pytest.approx(200.0), pytest.approx(200 / 1.5)]


def test_a_rate_begins_where_the_point_began():
    figure = bench_charts.output_rate([sample(0.5, output_tokens=40), sample(1.0, output_tokens=80)])
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([0.0, 0.5, 1.0], [None, 80.0, 80.0])
    assert bench_charts.from_zero([]) == []


def test_many_samples_are_thinned_and_keep_their_totals():
    samples = [sample(second / 4, output_tokens=second * 10) for second in range(5001)]
    kept = bench_charts.thinned(samples)
    assert len(kept) <= 602 and kept[-1] is samples[-1]
    rates = bench_charts.rates(kept, lambda one: one.output_tokens)
    assert rates[1:] == [pytest.approx(40.0)] * (len(kept) - 1)


def test_prefix_hits_are_a_share_of_what_was_read_since_the_last_look():
    samples = [
        sample(0),
        sample(1, prefix_queries=100, prefix_hits=25), sample(2, prefix_queries=100, prefix_hits=25),
        sample(3, prefix_queries=200, prefix_hits=125),
    ]  # fmt: skip
    assert bench_charts.hit_rates(samples) == [None, 0.25, None, 1.0]
    assert bench_charts.hit_rates([]) == []


def test_what_the_device_does_not_tell_is_not_drawn():
    samples = [sample(second, cpu_percent=150.0, ram_bytes=2**30) for second in range(3)]
    use = bench_charts.device_use(samples)
    assert [line.name for line in use.data] == ["CPU (of one core)"]
    assert list(bench_charts.device_memory(samples).data[0].y) == [1.0, 1.0, 1.0]
    assert bench_charts.device_power(samples) is None


# -- request by request ---------------------------------------------------------------


def test_a_distribution_counts_every_request_also_those_far_out():
    values = np.array([10.0] * 98 + [12.0, 5000.0])
    figure = bench_charts.distribution(values, of="requests")
    assert sum(figure.data[0].y) == 100
    assert "and more" in figure.data[0].customdata[-1] and "5,000" in figure.data[0].customdata[-1]
    assert [mark.text for mark in figure.layout.annotations] == ["median 10 ms", "p99 62 ms"]


def test_a_distribution_of_equal_values_and_its_goal_are_drawn():
    figure = bench_charts.distribution(np.array([20.0, 20.0]), of="requests", limit_ms=25)
    assert sum(figure.data[0].y) == 2
    assert figure.layout.annotations[-1].text == "goal 25 ms"
    assert figure.layout.xaxis.range[1] >= 25


def test_a_timeline_shows_waiting_reading_writing_and_what_failed():
    records = [
        record(1.0, queue_s=0.5),
        record(0.0),
        record(2.0, ttft_s=None, itls_s=(), e2el_s=None, error="<b>too long</b>"),
    ]
    parts = {bars.name: bars for bars in bench_charts.timeline(records).data}
    assert list(parts["To the first token"].base) == [0.0, 1.0]
    assert list(parts["Writes"].base) == [0.1, 1.1] and list(parts["Writes"].x) == pytest.approx([0.1, 0.1])
    assert (list(parts["Waits for a place"].base), list(parts["Waits for a place"].x)) == ([0.5], [0.5])
    assert list(parts["Failed"].y) == [2] and "<b>" not in parts["Failed"].customdata[0]


def test_answers_that_came_whole_are_one_bar_each():
    (bars,) = bench_charts.timeline([record(1.0, ttft_s=None, itls_s=())]).data
    assert (bars.name, list(bars.base), list(bars.x)) == ("Answered, first token not timed", [1.0], [0.2])


def test_a_timeline_is_bounded():
    figure = bench_charts.timeline([record(float(number)) for number in range(5000)])
    assert len(figure.data[0].y) == bench_charts.MOST_REQUESTS


# -- over the points of a sweep -----------------------------------------------------------


def sweep_points():
    loads = [Load(max_concurrency=value) for value in (1, 2, 4, 8)]
    figures = ((100, 10, 1.0), (190, 12, 1.0), (300, 20, 0.95), (305, 90, 0.2))
    return [
        summary(place + 4 * repeat, load, tokens, latency + repeat, repeat, good)
        for repeat in (0, 1)
        for place, (load, (tokens, latency, good)) in enumerate(zip(loads, figures, strict=True))
    ]


def test_a_sweep_has_a_line_for_each_repeat_its_knee_and_its_good_region():
    figure = bench_sweep_charts.latency_against_throughput(
        sweep_points(), "p99_ttft_ms", of="TTFT, p99", limit_ms=50
    )
    assert [list(line.y) for line in figure.data] == [[10, 12, 20, 90], [11, 13, 21, 91]]
    texts = [mark.text for mark in figure.layout.annotations]
    assert "knee: 4 at once" in texts and "goal 50 ms" in texts
    region = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (region.x0, region.x1) == (0, 300)


def test_a_goal_far_above_everything_does_not_flatten_it():
    points = sweep_points()
    figure = bench_sweep_charts.latency_against_throughput(points, "p99_ttft_ms", of="TTFT", limit_ms=5000)
    assert "goal 5.0 s ↑" in [mark.text for mark in figure.layout.annotations]
    assert not [shape for shape in figure.layout.shapes if shape.type == "line"]


def test_points_without_the_latency_are_left_out_of_the_picture():
    points = [summary(0, Load(max_concurrency=1), 10, None), summary(1, Load(max_concurrency=2), 20, 5)]
    figure = bench_sweep_charts.latency_against_throughput(points, "p99_ttft_ms", of="TTFT")
    assert list(figure.data[0].x) == [20]
    assert list(bench_sweep_charts.throughput_over_load(points).data[0].y) == [10, 20]


def test_what_differs_between_loads_is_found():
    assert bench_sweep_charts.swept(sweep_points()) == "max_concurrency"
    assert (
        bench_sweep_charts.swept([summary(0, Load(request_rate=1), 1, 1), summary(1, Load(), 1, 1)])
        == "request_rate"
    )
    assert bench_sweep_charts.swept([summary(0, Load(request_rate=1), 1, 1)]) is None


# -- words and expectations ------------------------------------------------------------------


def view(kind, points, spec=None, **environment):
    return BenchView(
        benchmark_id="b", name="mine", created_at=dt.datetime.now(dt.UTC), state="complete", message="",
        kind=kind, spec=spec, environment=environment, points=tuple(points),
    )  # fmt: skip


def test_the_headline_is_the_best_point():
    assert bench_words.headline(view("serve", sweep_points())) == ("up to 305", "output tokens/s")
    one = PointSummary(number=0, repeat=0, load=None, result={"avg_latency": 1.234})
    assert bench_words.headline(view("latency", [one])) == ("1.2 s", "a batch")
    imported = PointSummary(number=0, repeat=0, load=None, result={"tokens_per_second": 4321.0})
    assert bench_words.headline(view("throughput", [imported])) == ("4,321", "tokens/s, prompts included")
    assert bench_words.headline(view("serve", [])) == ("–", "")


def test_what_was_not_measured_is_no_zero():
    figures = {title: words for title, words, _help in bench_words.main_figures("serve", {
        "output_throughput": 0.0, "request_throughput": 0.0, "median_ttft_ms": None, "completed": 0,
        "failed": 7, "duration": 2.0, "request_goodput": None,
    })}  # fmt: skip
    assert figures["Output tokens/s"] == "0" and figures["Failed"] == "7"
    assert not any(title.startswith(("TTFT", "Goodput")) for title in figures)
    assert bench_words.latency_rows({"mean_ttft_ms": None, "p99_ttft_ms": None}) == []
    (row,) = bench_words.latency_rows(
        {"mean_tpot_ms": 8.34, "median_tpot_ms": None, "p50_tpot_ms": 7.0, "p99.9_tpot_ms": 1500.0}
    )
    assert row == {"": "TPOT", "Mean": "8.3 ms", "Median": "–", "Deviation": "–", "p99.9": "1.5 s"}


def measured(at_once, tokens, seconds):
    result = {
        "max_concurrent_requests": at_once, "completed": at_once, "duration": seconds,
        "total_input_tokens": tokens // 2, "total_output_tokens": tokens // 2,
    }  # fmt: skip
    point = PointSummary(number=0, repeat=0, load=Load(max_concurrency=at_once), result=result)
    return view("serve", [point], model="small", engine="vllm")


def test_the_time_comes_from_the_earlier_point_that_is_most_alike():
    earlier = [measured(1, 1000, 10.0), measured(64, 64_000, 10.0)]
    workload = RandomWorkload(num_prompts=100, input_len=64, output_len=64)
    alone = BenchSpec(kind="serve", workload=workload, loads=(Load(max_concurrency=1),), repeats=2)
    expected = outlook(alone, "small", "vllm", earlier)
    assert (expected.points, expected.requests) == (2, 100)
    assert expected.seconds == pytest.approx(2 * 12_800 / 100)
    everything = BenchSpec(kind="throughput", workload=workload)
    assert outlook(everything, "small", "vllm", earlier).seconds == pytest.approx(12_800 / 6400)
    assert outlook(everything, "other", "vllm", earlier).seconds is None


def test_a_rate_takes_at_least_as_long_as_its_requests_need_to_come():
    workload = RandomWorkload(num_prompts=100, input_len=64, output_len=64)
    slow = BenchSpec(kind="serve", workload=workload, loads=(Load(request_rate=0.5),))
    assert outlook(slow, "small", "vllm", [measured(64, 64_000, 10.0)]).seconds == pytest.approx(200)


def test_a_sweep_is_bounded_by_its_most_points_and_a_table_has_no_time():
    sweep = BenchSpec(kind="serve", sweep=Sweep(over="max_concurrency", most_points=5), repeats=3)
    expected = outlook(sweep, "small", "vllm", [])
    assert (expected.points, expected.is_bound, expected.seconds) == (15, True, None)
    table = TableWorkload(path="rows.csv", prompt=PromptSpec(template="{{ a }}"), num_prompts=None)
    expected = outlook(BenchSpec(kind="throughput", workload=table), "small", "vllm", [measured(1, 10, 1)])
    assert (expected.requests, expected.seconds) == (None, None)


def test_a_table_takes_as_long_as_it_took_before():
    table = TableWorkload(path="rows.csv", prompt=PromptSpec(template="{{ a }}"), num_prompts=50)
    spec = BenchSpec(kind="throughput", workload=table)
    assert outlook(spec, "small", "vllm", [measured(8, 800, 4.0)]).seconds is None
    result = {"elapsed_time": 5.0, "completed": 40, "total_input_tokens": 900, "total_output_tokens": 100}
    point = PointSummary(number=0, repeat=0, load=None, result=result)
    before = view("throughput", [point], spec, model="small", engine="vllm")
    twice = spec.model_copy(update={"repeats": 2})
    assert outlook(twice, "small", "vllm", [before]).seconds == pytest.approx(10.0)


def test_loads_are_read_as_they_are_written():
    assert numbers("1, 2.5 4，inf", whole=False) == (1.0, 2.5, 4.0, None)
    assert numbers("8 8, 16", whole=True) == (8, 16)
    for words in ("", "two", "0", "-1", "nan", "1e999"):
        with pytest.raises(ParameterError):
            numbers(words, whole=False)
    with pytest.raises(ParameterError, match="whole number"):
        numbers("1.5", whole=True)
