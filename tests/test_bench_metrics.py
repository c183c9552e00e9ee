"""Every formula of a benchmark: on timelines made by hand, on random ones, and against vLLM's own code."""

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.bench import knee, metrics, words
from core.bench.arrivals import send_times
from core.bench.records import PointSummary, RequestRecord
from core.bench.spec import Load, Sweep

# Two answers of 3 and 2 tokens, one failure. Sent at 0 s, 0.5 s and 0.6 s.
FIRST = RequestRecord(input_len=10, output_len=3, start_s=0.0, ttft_s=0.2, itls_s=(0.1, 0.3), e2el_s=0.6)
SECOND = RequestRecord(input_len=20, output_len=2, start_s=0.5, ttft_s=0.4, itls_s=(0.8,), e2el_s=1.2)
FAILED = RequestRecord(input_len=40, output_len=7, start_s=0.6, error="It broke off.")
ONE_TOKEN = RequestRecord(input_len=5, output_len=1, start_s=0.0, ttft_s=0.3, e2el_s=0.3)
UNTIMED = settings(deadline=None)  # the machine may be busy
WHOLE = RequestRecord(input_len=10, output_len=4, start_s=0.0, e2el_s=2.0)


@st.composite
def timelines(draw):
    """Requests that succeeded, one piece a token, and some that failed."""
    seconds = st.floats(0.001, 3.0)
    records = []
    for _ in range(draw(st.integers(1, 12))):
        start = draw(seconds)
        if draw(st.integers(0, 5)) == 0:
            records.append(RequestRecord(input_len=7, output_len=0, start_s=start, error="refused"))
            continue
        gaps = draw(st.lists(seconds, max_size=6))
        ttft = draw(seconds)
        records.append(
            RequestRecord(
                input_len=draw(st.integers(1, 500)),
                output_len=len(gaps) + 1,
                start_s=start,
                ttft_s=ttft,
                itls_s=tuple(gaps),
                e2el_s=ttft + sum(gaps),
            )
        )
    return records


class TestServe:
    def test_counts_and_rates_leave_failed_requests_out_but_count_them(self):
        result = metrics.serve_result([FIRST, SECOND, FAILED], 2.0)
        assert (result["completed"], result["failed"]) == (2, 1)
        assert (result["total_input_tokens"], result["total_output_tokens"]) == (30, 5)
        assert result["duration"] == 2.0
        assert result["request_throughput"] == 1.0
        assert result["output_throughput"] == 2.5
        assert result["total_token_throughput"] == 17.5

    def test_ttft_is_each_requests_first_token(self):
        result = metrics.serve_result([FIRST, SECOND, FAILED], 2.0, percentiles=(50, 90))
        assert result["mean_ttft_ms"] == pytest.approx(300)
        assert result["median_ttft_ms"] == pytest.approx(300)
        assert result["std_ttft_ms"] == pytest.approx(100)  # of the population: 141 of a sample
        assert result["p90_ttft_ms"] == pytest.approx(380)  # between the two, linearly

    def test_tpot_is_the_rest_over_the_tokens_after_the_first(self):
        result = metrics.serve_result([FIRST, SECOND, ONE_TOKEN], 2.0, percentiles=(0.1,))
        assert result["mean_tpot_ms"] == pytest.approx((200 + 800) / 2)  # one token has none
        assert "p0.1_tpot_ms" in result

    def test_itl_pools_all_gaps_of_all_requests(self):
        result = metrics.serve_result([FIRST, SECOND], 2.0)
        assert result["mean_itl_ms"] == pytest.approx((100 + 300 + 800) / 3)  # of answers' means: 500
        assert result["median_itl_ms"] == pytest.approx(300)

    def test_e2el_is_until_the_last_token(self):
        assert metrics.serve_result([FIRST, SECOND], 2.0)["mean_e2el_ms"] == pytest.approx(900)

    def test_only_the_metrics_and_percentiles_asked_for_are_there(self):
        result = metrics.serve_result([FIRST], 1.0, metrics=("tpot",), percentiles=(99, 99.9))
        names = [name for name in result if name.endswith("_ms")]
        assert names == ["mean_tpot_ms", "median_tpot_ms", "std_tpot_ms", "p99_tpot_ms", "p99.9_tpot_ms"]

    def test_what_was_not_measured_is_none(self):
        result = metrics.serve_result([WHOLE], 2.0, goodput={"ttft": 100})
        assert result["mean_ttft_ms"] is result["p99_tpot_ms"] is result["std_itl_ms"] is None
        assert result["max_output_tokens_per_s"] is None
        assert result["request_goodput"] is None, "nobody knows its first token's time"
        assert (result["output_throughput"], result["mean_e2el_ms"]) == (2.0, 2000)

    def test_when_all_failed_the_rates_are_zero_and_no_latency_is_known(self):
        result = metrics.serve_result([FAILED], 2.0, goodput={"e2el": 1000})
        assert (result["failed"], result["output_throughput"], result["request_goodput"]) == (1, 0, 0)
        assert result["mean_e2el_ms"] is result["max_concurrent_requests"] is None

    def test_without_any_time_there_are_no_rates(self):
        assert metrics.serve_result([], 0.0)["output_throughput"] is None

    def test_the_best_second_and_the_most_requests_in_one(self):
        # pieces at 0.2, 0.3, 0.6 | 0.9, 1.7: four in the first second, one in the next
        result = metrics.serve_result([FIRST, SECOND], 2.0)
        assert (result["max_output_tokens_per_s"], result["max_concurrent_requests"]) == (4, 2)

    def test_seconds_are_counted_from_the_first_request_not_from_the_start(self):
        late = [dataclasses.replace(record, start_s=record.start_s + 10.5) for record in (FIRST, SECOND)]
        result = metrics.serve_result(late, 13.0)
        assert (result["max_output_tokens_per_s"], result["max_concurrent_requests"]) == (4, 2)
        assert metrics.per_second(late) == (4, 1)

    def test_requests_in_one_second_count_as_at_once_even_one_after_the_other(self):
        """As in vLLM: its seconds are buckets."""
        after = RequestRecord(input_len=1, output_len=1, start_s=0.7, ttft_s=0.1, e2el_s=0.1)
        assert metrics.serve_result([FIRST, after], 1.0)["max_concurrent_requests"] == 2


class TestGoodput:
    @pytest.mark.parametrize(
        ("limits", "good"),
        [
            ({"ttft": 200}, 1),  # exactly at the limit is good
            ({"ttft": 400}, 2),
            ({"ttft": 400, "tpot": 200.001}, 1),
            ({"ttft": 100, "e2el": 600}, 0),
            ({"e2el": 1200}, 2),
        ],
    )
    def test_counts_requests_that_meet_every_limit(self, limits, good):
        result = metrics.serve_result([FIRST, SECOND, FAILED], 2.0, goodput=limits)
        assert result["request_goodput"] == good / 2.0

    def test_is_none_without_limits(self):
        assert metrics.serve_result([FIRST], 1.0)["request_goodput"] is None

    def test_an_answer_of_one_token_meets_any_tpot(self):
        assert metrics.is_good(ONE_TOKEN, {"tpot": 0.001})
        assert metrics.serve_result([ONE_TOKEN], 1.0, goodput={"tpot": 0.001})["request_goodput"] == 1


class TestOverTime:
    def test_tokens_of_each_second_since_the_first_request(self):
        assert metrics.per_second([FIRST, SECOND, FAILED]) == (4, 1)

    def test_several_tokens_in_a_piece_are_spread_over_the_pieces(self):
        record = RequestRecord(
            input_len=1, output_len=6, start_s=5.0, ttft_s=0.5, itls_s=(1.0, 1.0), e2el_s=2.5
        )
        assert metrics.per_second([record]) == (2, 2, 2)

    def test_is_empty_where_no_times_are_known(self):
        assert metrics.per_second([WHOLE, FAILED]) == ()


class TestOtherKinds:
    def test_throughput_counts_prompts_and_answers_as_vllm_does(self):
        result = metrics.throughput_result([FIRST, SECOND, FAILED], 2.0)
        assert result["elapsed_time"] == 2.0
        assert (result["num_requests"], result["failed"]) == (2, 1)
        assert result["total_num_tokens"] == 35
        assert (result["requests_per_second"], result["tokens_per_second"]) == (1.0, 17.5)
        assert result["output_throughput"] == 2.5

    def test_latency_has_the_iterations_and_their_percentiles(self):
        result = metrics.latency_result([1.0, 2.0, 3.0], [FIRST, SECOND, FAILED])
        assert result["avg_latency"] == 2.0
        assert result["latencies"] == [1.0, 2.0, 3.0]
        assert result["percentiles"] == {"10": 1.2, "25": 1.5, "50": 2.0, "75": 2.5, "90": 2.8, "99": 2.98}
        assert result["output_throughput"] == pytest.approx(5 / 6)
        assert result["failed"] == 1

    def test_tokens_of_a_batch_that_was_not_timed_do_not_count(self):
        # a whole batch, one with a failure, and one that was stopped after its first answer
        result = metrics.latency_result([2.0], [FIRST, SECOND, FIRST, FAILED, FIRST], 2)
        assert (result["total_output_tokens"], result["output_throughput"]) == (5, 2.5)
        assert (result["completed"], result["failed"]) == (4, 1)

    def test_latency_without_iterations_is_not_measured(self):
        result = metrics.latency_result([])
        assert result["avg_latency"] is result["percentiles"]["99"] is result["output_throughput"] is None

    def test_the_lists_of_a_detailed_result_are_in_the_requests_order(self):
        lists = metrics.details([FIRST, FAILED])
        assert lists["input_lens"] == [10, 40]
        assert lists["output_lens"] == [3, 0]
        assert lists["ttfts"] == [0.2, None]
        assert lists["itls"] == [[0.1, 0.3], []]
        assert lists["errors"] == ["", "It broke off."]
        assert {len(column) for column in lists.values()} == {2}


class TestProperties:
    @UNTIMED
    @given(timelines(), st.floats(0.5, 20))
    def test_figures_stay_within_what_was_measured(self, records, duration):
        result = metrics.serve_result(records, duration, percentiles=(1, 50, 99))
        for metric in ("ttft", "tpot", "itl", "e2el"):
            values = metrics.milliseconds(records, metric)
            if not values:
                assert result[f"mean_{metric}_ms"] is None
                continue
            ordered = [result[f"{name}_{metric}_ms"] for name in ("p1", "p50", "p99")]
            assert ordered == sorted(ordered)
            assert min(values) - 1e-6 <= ordered[0] and ordered[-1] <= max(values) + 1e-6
            assert result[f"mean_{metric}_ms"] == pytest.approx(statistics.fmean(values))
            assert result[f"std_{metric}_ms"] == pytest.approx(statistics.pstdev(values), abs=1e-6)

    @UNTIMED
    @given(timelines(), st.floats(0.5, 20))
    def test_no_request_is_lost_and_no_token(self, records, duration):
        result = metrics.serve_result(records, duration)
        assert result["completed"] + result["failed"] == len(records)
        assert sum(metrics.per_second(records)) == pytest.approx(result["total_output_tokens"])
        assert result["output_throughput"] * duration == pytest.approx(result["total_output_tokens"])

    @UNTIMED
    @given(timelines(), st.floats(1, 3000))
    def test_goodput_grows_with_the_limit_and_ends_at_all_that_succeeded(self, records, limit):
        def good(**goodput):
            return metrics.serve_result(records, 1.0, goodput=goodput)["request_goodput"]

        assert good(e2el=limit) <= good(e2el=limit + 500) <= good(e2el=1e9)
        assert good(e2el=1e9) == sum(record.ok for record in records)
        assert good(ttft=limit, e2el=limit) <= good(e2el=limit)


class TestAgainstVllm:
    @settings(max_examples=60, deadline=None)
    @given(timelines(), st.floats(0.5, 20), st.booleans())
    def test_random_outputs_give_what_vllm_itself_computes(self, records, duration, has_limits):
        serve = pytest.importorskip("vllm.benchmarks.serve")
        if not any(record.ok for record in records):
            return  # vLLM writes zeros then, and warns
        goodput = {"ttft": 1500.0, "tpot": 1500.0, "e2el": 6000.0} if has_limits else {}
        outputs = [
            serve.RequestFuncOutput(
                success=record.ok,
                latency=record.e2el_s or 0.0,
                output_tokens=record.output_len,
                ttft=record.ttft_s or 0.0,
                itl=list(record.itls_s),
                prompt_len=record.input_len,
                error=record.error or "",
                start_time=record.start_s,
            )
            for record in records
        ]
        percentiles = (50.0, 90.0, 99.9)
        theirs, lengths = serve.calculate_metrics([], outputs, duration, None, list(percentiles), goodput)
        ours = metrics.serve_result(records, duration, percentiles=percentiles, goodput=goodput)

        assert ours["completed"] == theirs.completed
        assert ours["failed"] == theirs.failed
        assert ours["total_input_tokens"] == theirs.total_input
        assert ours["total_output_tokens"] == theirs.total_output
        assert metrics.details(records)["output_lens"] == lengths
        for name in ("request_throughput", "output_throughput", "total_token_throughput"):
            assert ours[name] == pytest.approx(getattr(theirs, name))
        if has_limits:
            assert ours["request_goodput"] == pytest.approx(theirs.request_goodput)
        assert ours["max_output_tokens_per_s"] == theirs.max_output_tokens_per_s
        assert ours["max_concurrent_requests"] == theirs.max_concurrent_requests
        for metric in ("ttft", "tpot", "itl", "e2el"):
            measured = bool(metrics.milliseconds(records, metric))
            for name in ("mean", "median", "std"):
                value = getattr(theirs, f"{name}_{metric}_ms")
                key = f"{name}_{metric}_ms"
                assert ours[key] == (pytest.approx(value, abs=1e-6) if measured else None)
            for share, value in getattr(theirs, f"percentiles_{metric}_ms"):
                key = f"{metrics.percentile_name(share)}_{metric}_ms"
                assert ours[key] == (pytest.approx(value) if measured else None)


def point(load, output, *, rate=None, duration=10.0, failed=0, is_whole=True, repeat=0):
    result = {
        "duration": duration,
        "completed": 100 - failed,
        "failed": failed,
        "total_output_tokens": output,
        "request_goodput": rate,
    }
    return PointSummary(number=0, repeat=repeat, load=load, result=result, is_whole=is_whole)


def rates(*outputs):
    return [knee.LoadPoint(2.0**step, output) for step, output in enumerate(outputs)]


class TestKnee:
    def test_is_the_last_load_before_a_step_that_brought_too_little(self):
        assert knee.knee(rates(100, 200, 390, 400, 410)) == 2
        assert knee.knee(rates(100, 104)) == 0
        assert knee.knee(rates(100, 150), least_gain=0.5) is None, "exactly the least gain pays"

    def test_is_none_while_every_step_pays(self):
        assert knee.knee(rates(100, 200, 400)) is None
        assert knee.knee(rates(100)) is None
        assert knee.knee([]) is None

    def test_nothing_at_all_is_no_gain(self):
        assert knee.knee(rates(100, None)) == 0
        assert knee.knee(rates(0.0, 0.0)) == 0

    def test_a_sweep_ends_at_the_knee_or_at_most_points(self):
        sweep = Sweep(over="request_rate", most_points=3)
        assert knee.goes_on([], sweep)
        assert knee.goes_on(rates(100, 200), sweep)
        assert not knee.goes_on(rates(100, 101), sweep)
        assert not knee.goes_on(rates(100, 200, 400), sweep)

    def test_the_loads_of_a_sweep_grow_by_its_factor(self):
        sweep = Sweep(over="request_rate", start=0.5, factor=2)
        like = Load(max_concurrency=8, arrivals="constant")
        assert [knee.swept_load(sweep, step, like).request_rate for step in range(3)] == [0.5, 1, 2]
        assert knee.swept_load(sweep, 1, like).max_concurrency == 8

    def test_concurrency_grows_by_whole_requests(self):
        sweep = Sweep(over="max_concurrency", start=1, factor=1.2)
        found = [knee.swept_load(sweep, step).max_concurrency for step in range(8)]
        assert found == [1, 2, 3, 4, 5, 6, 7, 8]
        assert all(isinstance(value, int) for value in found)

    def test_repeats_of_a_load_are_pooled_not_averaged(self):
        load = Load(request_rate=4)
        points = [
            point(load, 100, duration=1.0),
            point(load, 100, duration=9.0, repeat=1),  # 100 and 11.1 tokens/s: the mean would be 55.6
        ]
        (found,) = knee.load_points(points, "request_rate")
        assert found.output_throughput == 20.0
        assert found.request_throughput == 20.0

    def test_points_are_in_order_of_load_and_those_cut_short_are_left_out(self):
        points = [
            point(Load(request_rate=4), 400),
            point(Load(request_rate=1), 100),
            point(Load(request_rate=2), 10, is_whole=False),
            point(Load(max_concurrency=3), 10),
            point(None, 10),
        ]
        assert [at.load for at in knee.load_points(points, "request_rate")] == [1, 4]

    def test_the_goodput_region_ends_at_the_first_load_that_breaks_the_promise(self):
        # 100 requests in 10 s: 10 requests/s are all of them
        shares = [10.0, 9.5, 5.0, 10.0]
        points = [point(Load(request_rate=2**step), 1, rate=rate) for step, rate in enumerate(shares)]
        found = knee.load_points(points, "request_rate")
        assert [at.good_share for at in found] == [1.0, 0.95, 0.5, 1.0]
        assert knee.goodput_region(found) == (1, 2)
        assert knee.goodput_region(found, 0.99) == (1, 1)
        assert knee.goodput_region(found[2:]) is None

    def test_failed_requests_break_the_promise_too(self):
        (found,) = knee.load_points([point(Load(request_rate=1), 1, rate=8.0, failed=20)], "request_rate")
        assert found.good_share == pytest.approx(0.8)

    def test_without_limits_there_is_no_region(self):
        found = knee.load_points([point(Load(request_rate=1), 1)], "request_rate")
        assert found[0].good_share is None
        assert knee.goodput_region(found) is None


class TestArrivals:
    def test_without_a_rate_all_are_due_at_once(self):
        assert send_times(Load(max_concurrency=4), 3, seed=0) == [0, 0, 0]
        assert send_times(Load(request_rate=2), 0, seed=0) == []

    def test_constant_arrivals_are_equally_far_apart(self):
        times = send_times(Load(request_rate=4, arrivals="constant"), 4, seed=0)
        assert times == pytest.approx([0.25, 0.5, 0.75, 1.0])

    @UNTIMED
    @given(
        st.floats(0.1, 1000),
        st.integers(1, 300),
        st.floats(0.05, 50),
        st.sampled_from(["poisson", "gamma", "constant"]),
        st.integers(0, 1000),
    )
    def test_the_last_is_due_after_exactly_count_over_rate_seconds(self, rate, count, shape, arrivals, seed):
        load = Load(request_rate=rate, burstiness=shape, arrivals=arrivals)
        times = send_times(load, count, seed)
        assert len(times) == count
        assert times[0] >= 0 and all(a <= b for a, b in itertools.pairwise(times))
        assert times[-1] == pytest.approx(count / rate)
        assert times == send_times(load, count, seed)

    def test_they_are_those_of_vllm_bench_for_the_same_seed(self):
        """`get_request` draws the gaps one by one from NumPy's own generator, seeded."""
        np.random.seed(7)
        gaps = [np.random.gamma(shape=0.5, scale=1 / (3.0 * 0.5)) for _ in range(20)]
        ends = np.cumsum(gaps)
        expected = ends * (20 / 3.0 / ends[-1])
        assert send_times(
            Load(request_rate=3, arrivals="gamma", burstiness=0.5), 20, seed=7
        ) == pytest.approx(expected.tolist())

    def test_bursts_have_more_uneven_gaps(self):
        def unevenness(shape):
            times = send_times(Load(request_rate=5, arrivals="gamma", burstiness=shape), 4000, seed=1)
            gaps = np.diff(times)
            return float(gaps.std() / gaps.mean())

        # a gamma distribution's deviation over its mean is 1 / sqrt(shape)
        for shape in (0.25, 1.0, 16.0):
            assert unevenness(shape) == pytest.approx(1 / math.sqrt(shape), rel=0.15)

    def test_poisson_arrivals_ignore_the_burstiness(self):
        plain = send_times(Load(request_rate=2), 10, seed=3)
        assert send_times(Load(request_rate=2, burstiness=0.1), 10, seed=3) == plain


class TestWords:
    def test_a_line_names_what_decides(self):
        result = metrics.serve_result([FIRST, SECOND, FAILED], 2.0, goodput={"ttft": 200})
        assert words.summary_words("serve", result) == (
            "2.5 output tokens/s, 1 requests/s, goodput 0.5 requests/s, median TTFT 300 ms, "
            "median TPOT 500 ms, 1 failed"
        )

    def test_a_throughput_file_of_vllms_speaks_of_all_tokens(self):
        result = {"tokens_per_second": 1234.5, "requests_per_second": 3.25}
        assert words.headline("throughput", result) == (
            "tokens_per_second",
            "Total tokens/s",
            "tokens/s",
            1234.5,
        )
        assert words.summary_words("throughput", result) == "1,234 total tokens/s, 3.25 requests/s"

    def test_a_latency_is_in_seconds_and_what_is_missing_says_so(self):
        assert words.summary_words("latency", metrics.latency_result([2.0])) == "mean latency 2 s"
        assert words.summary_words("serve", metrics.serve_result([], 0.0)) == "output tokens/s not measured"
