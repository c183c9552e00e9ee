"""Benchmarks beside each other, on timelines whose figures can be told in the head."""

import math
import random
import statistics

import numpy as np
import pytest
from bench_made import point, record, repeats, subject, view
from hypothesis import given, settings
from hypothesis import strategies as st

from core.bench import differences, figures, history
from core.bench.differences import NO_DIFFERENCE, ONE_REPEAT, compare
from core.bench.spec import BenchSpec, Load, RandomWorkload
from core.errors import BenchError

EIGHT = Load(max_concurrency=8)


def line(comparison, name, at=0):
    return next(one for one in comparison.loads[at].lines if one.metric.name == name)


# -- one benchmark's figures --------------------------------------------------------


def test_a_rate_over_repeats_is_sums_by_sums_and_not_the_mean_of_rates():
    points = repeats([1.0, 4.0])  # 110 tokens each: 110 and 27.5 tokens/s
    found = figures.figure("output_throughput", points)
    assert found.value == pytest.approx(220 / 5)
    assert found.values == pytest.approx((110, 27.5))
    assert (found.n, found.of) == (2, "repeats")


def test_a_percentile_over_repeats_is_of_all_their_requests():
    quick = point([record(0.1) for _ in range(90)])
    slow = point([record(1.0) for _ in range(10)], number=1, repeat=1)
    found = figures.figure("p95_ttft_ms", [quick, slow])
    assert found.value == pytest.approx(1000)  # the mean of both p95 would be 550
    assert found.values == pytest.approx((100, 1000))
    assert figures.figure("mean_ttft_ms", [quick, slow]).value == pytest.approx(190)


def test_failed_requests_are_counted_and_stand_in_no_latency():
    points = [point([record(0.1), record(0.1), record(0.1), record(error="too long")])]
    assert figures.figure("failed_share", points).value == pytest.approx(25)
    assert figures.figure("mean_ttft_ms", points).value == pytest.approx(100)
    assert figures.figure("request_throughput", points).value == pytest.approx(3)


def test_what_was_not_measured_is_none_and_never_zero():
    points = [point([record(error="too long")])]
    assert figures.figure("mean_ttft_ms", points) is None
    assert figures.figure("request_goodput", points) is None
    assert "mean_ttft_ms" not in figures.names(points)


def test_percentiles_of_several_repeats_without_their_requests_are_not_made_up():
    details = repeats([1.0, 1.0])
    summaries = [figures.without_details(one) for one in details]
    assert figures.figure("p99_ttft_ms", summaries) is None
    assert figures.figure("p99_ttft_ms", summaries[:1]).value == pytest.approx(100)
    assert figures.figure("output_throughput", summaries).value == pytest.approx(110)


def test_the_interval_over_repeats_is_students():
    found = figures.figure("output_throughput", repeats([1.0, 1.1, 1.2]))
    rates = [110 / seconds for seconds in (1.0, 1.1, 1.2)]
    half = 4.303 * statistics.stdev(rates) / math.sqrt(3)
    assert found.high - found.value == pytest.approx(half)
    assert found.value - found.low == pytest.approx(half)


def test_the_interval_of_one_repeat_comes_from_its_requests():
    random_times = random.Random(1)
    records = [record(random_times.uniform(0.1, 0.3)) for _ in range(200)]
    found = figures.figure("mean_ttft_ms", [point(records)])
    times = [one.ttft_s * 1000 for one in records]
    assert (found.n, found.of, found.error) == (200, "requests", None)
    normal = 1.96 * statistics.stdev(times) / math.sqrt(200)
    assert found.high - found.low == pytest.approx(2 * normal, rel=0.2)
    median = figures.figure("median_ttft_ms", [point(records)])
    assert median.low < statistics.median(times) < median.high


def test_gaps_of_one_request_are_drawn_together():
    """100 gaps of 2 requests are no 100 pieces of evidence."""
    records = [record(gap_s=0.01, output_len=51), record(gap_s=0.03, output_len=51)]
    found = figures.figure("mean_itl_ms", [point(records)])
    assert (found.value, found.n) == (pytest.approx(20), 2)
    assert (found.low, found.high) == pytest.approx((10, 30))


@settings(deadline=None)
@given(
    st.lists(st.floats(0.001, 10), min_size=1, max_size=30),
    st.lists(st.integers(0, 3), min_size=30, max_size=30),
    st.floats(0.01, 0.99),
)
def test_a_weighted_quantile_is_numpys_of_the_repeated_values(values, weights, share):
    ordered = np.sort(np.asarray(values))
    weights = np.asarray(weights[: len(values)])
    weights[0] += 1
    expected = np.percentile(np.repeat(ordered, weights), share * 100)
    assert figures._weighted_quantile(ordered, weights, share) == pytest.approx(expected)


def test_a_latency_benchmark_tells_its_spread_by_its_iterations():
    latency = point([], 0).result | {"latencies": [1.0, 1.1, 1.2], "avg_latency": 1.1}
    one = figures.without_details(view([point([])]).points[0])
    found = figures.figure("avg_latency", [type(one)(number=0, repeat=0, load=None, result=latency)])
    assert (found.n, found.of) == (3, "iterations")
    assert found.high - found.value == pytest.approx(4.303 * 0.1 / math.sqrt(3))


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2.9, 4.303), (10, 2.228), (15, 2.131), (60, 2.000), (1e6, 1.960)]
)
def test_students_quantile_is_the_tables(freedom, quantile):
    assert figures.student_t(freedom) == pytest.approx(quantile, abs=0.002)


# -- two benchmarks -----------------------------------------------------------------


def test_a_difference_beyond_the_interval_is_told_with_its_direction():
    before = subject(repeats([1.0, 1.01, 0.99], ttft_s=0.1), "before")
    after = subject(repeats([2.0, 2.02, 1.98], ttft_s=0.1), "after")
    found = line(compare([before, after]), "output_throughput").differences[1]
    assert (found.verdict, found.is_regression) == ("worse", True)
    assert found.share == pytest.approx(-0.5, abs=0.001)
    assert found.low < found.value < found.high < 0
    turned = line(compare([after, before]), "output_throughput").differences[1]
    assert (turned.verdict, turned.is_regression) == ("better", False)


def test_more_latency_is_worse():
    before = [point([record(0.1 + n / 1000)], number=n, repeat=n) for n in range(3)]
    after = [point([record(0.2 + n / 1000)], number=n, repeat=n) for n in range(3)]
    comparison = compare([subject(before, "before"), subject(after, "after")])
    assert line(comparison, "mean_ttft_ms").differences[1].verdict == "worse"
    assert {one.metric.name for _at, one, _place in comparison.regressions} >= {
        "mean_ttft_ms",
        "mean_e2el_ms",
    }


def test_welchs_interval():
    base, other = [1.0, 1.1, 1.2, 1.3], [1.15, 1.35, 1.6]
    found = line(compare([subject(repeats(base), "a"), subject(repeats(other), "b")]), "output_throughput")
    ours, theirs = ([110 / seconds for seconds in each] for each in (other, base))
    a, b = statistics.variance(ours) / 3, statistics.variance(theirs) / 4
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    half = figures.student_t(freedom) * math.sqrt(a + b)
    change = found.differences[1]
    assert change.high - change.value == pytest.approx(half)


def test_a_difference_inside_the_interval_is_none_shown():
    before, after = subject(repeats([1.0, 1.3, 0.8]), "before"), subject(repeats([1.1, 1.2, 0.9]), "after")
    found = line(compare([before, after]), "output_throughput").differences[1]
    assert (found.verdict, found.is_regression) == (NO_DIFFERENCE, False)


def test_one_repeat_tells_no_difference_however_large():
    before, after = subject(repeats([1.0]), "before"), subject(repeats([9.0, 9.0, 9.0]), "after")
    comparison = compare([before, after])
    found = line(comparison, "output_throughput").differences[1]
    assert (found.verdict, found.low, found.is_regression) == (ONE_REPEAT, None, False)
    assert any("one repeat" in text for text in comparison.warnings)


def test_a_small_difference_is_no_regression_until_the_threshold_says_so():
    before, after = (
        subject(repeats([1.0, 1.0001, 0.9999]), "a"),
        subject(repeats([1.02, 1.0201, 1.0199]), "b"),
    )
    assert line(compare([before, after]), "output_throughput").differences[1].verdict == "worse"
    assert compare([before, after]).regressions == ()
    assert compare([before, after], threshold=0.01).regressions != ()


def test_equal_runs_differ_by_nothing():
    found = line(compare([subject(repeats([1, 1]), "a"), subject(repeats([1, 1]), "b")]), "output_throughput")
    assert (found.differences[1].value, found.differences[1].verdict) == (0, NO_DIFFERENCE)


RATES = st.lists(st.floats(0.5, 2), min_size=2, max_size=6)


@settings(deadline=None)
@given(RATES, RATES)
def test_the_difference_turns_round_with_the_baseline(one, other):
    name = "output_throughput"
    first, second = (figures.figure(name, repeats(durations)) for durations in (one, other))
    there = differences.difference(figures.metric(name), second, first)
    back = differences.difference(figures.metric(name), first, second)
    assert there.value == pytest.approx(-back.value)
    assert there.low == pytest.approx(-back.high)
    opposite = {"better": "worse", "worse": "better"}
    assert back.verdict == opposite.get(there.verdict, there.verdict)


def test_points_are_matched_by_their_load():
    before = subject([*repeats([1, 1], EIGHT), *repeats([2, 2], Load(max_concurrency=1), start=2)], "before")
    after = subject([*repeats([1, 1], EIGHT), *repeats([3, 3], Load(request_rate=4), start=2)], "after")
    comparison = compare([before, after])
    assert [at.title for at in comparison.loads] == ["8 at once"]
    assert comparison.loads[0].repeats == (2, 2)
    assert set(comparison.unmatched) == {"1 at once", "4 requests/s"}


def test_a_stopped_point_is_left_out_and_told_of():
    stopped = point([record()], 1.0, number=2, repeat=2, is_whole=False)
    comparison = compare([subject([*repeats([1, 1]), stopped], "a"), subject(repeats([1, 1]), "b")])
    assert comparison.loads[0].repeats == (2, 2)
    assert any("stopped" in text for text in comparison.warnings)


def test_what_differs_is_listed():
    values = {"max_num_seqs": 32, "dtype": "bfloat16"}
    before = subject(repeats([1, 1]), "a", environment={"model": "tiny", "settings": values})
    after = subject(
        repeats([1, 1]),
        "b",
        environment={"model": "tiny", "settings": values | {"max_num_seqs": 64}, "gpus": ["H200"]},
    )
    found = {(one.group, one.name): one.values for one in compare([before, after]).conditions if one.differs}
    assert found == {
        ("Settings", "max_num_seqs"): ("32", "64"),
        ("Machine and versions", "gpus"): (None, '["H200"]'),
    }


def test_different_workloads_are_warned_of():
    other = BenchSpec(kind="serve", workload=RandomWorkload(num_prompts=10, input_len=128, output_len=11))
    comparison = compare([subject(repeats([1, 1]), "a"), subject(repeats([1, 1]), "b", spec=other)])
    assert any("workloads differ" in text for text in comparison.warnings)
    alike = compare([subject(repeats([1, 1]), "a"), subject(repeats([1, 1]), "b")])
    assert alike.warnings == ()


def test_different_token_counts_and_cached_tokens_are_warned_of():
    one = [point([record(output_len=11, cached_tokens=64)] * 10, repeat=n, number=n) for n in range(2)]
    other = [point([record(output_len=21)] * 10, repeat=n, number=n) for n in range(2)]
    warnings = " ".join(compare([subject(one, "a"), subject(other, "b")]).warnings)
    assert "generated tokens differ" in warnings
    assert "prefix cache differ (100%, 0%)" in warnings


def test_nothing_in_common_is_said():
    comparison = compare(
        [subject(repeats([1], EIGHT), "a"), subject(repeats([1], Load(request_rate=1)), "b")]
    )
    assert comparison.loads == ()
    assert any("nothing can be compared" in text for text in comparison.warnings)


def test_equal_names_are_told_apart():
    assert compare([subject(repeats([1]), "a"), subject(repeats([1]), "a")]).names == ("a (1)", "a (2)")


def test_one_benchmark_alone_or_a_strange_baseline_is_refused():
    with pytest.raises(BenchError, match="two or more"):
        compare([subject(repeats([1]))])
    with pytest.raises(BenchError, match="baseline"):
        compare([subject(repeats([1]), "a"), subject(repeats([1]), "b")], baseline=2)


# -- over time ----------------------------------------------------------------------


def test_a_history_has_each_repeat_and_says_what_changed():
    old = view(repeats([1.0, 2.0]), "old", environment={"model": "tiny", "engine_version": "0.31"}, day=1)
    new = view(repeats([1.0]), "new", environment={"model": "tiny", "engine_version": "0.32"}, day=2)
    other = view(
        repeats([1.0]), "other", spec=BenchSpec(kind="serve", workload=RandomWorkload(num_prompts=5))
    )
    found = history.alike([new, other, old], new)
    assert [one.name for one in found] == ["old", "new"]
    places = history.history(found, None, "output_throughput")
    assert [place.values for place in places] == [pytest.approx((110, 55)), pytest.approx((110,))]
    assert [place.changes for place in places] == [(), ("engine_version 0.31 → 0.32",)]


def test_a_file_of_vllm_has_no_history_as_nobody_knows_what_it_asked():
    imported = view(repeats([1.0]), "theirs", source="theirs.json")
    assert history.alike([imported, view(repeats([1.0]))], imported) == ()
    assert differences.workload_key(imported) == ""
