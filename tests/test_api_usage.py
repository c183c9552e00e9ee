"""What the API was asked: counted by key and hour, written behind, percentiles from the requests."""

import datetime as dt
import itertools
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import until

from core.api.usage import KEPT_DAYS, Usage
from core.errors import WorkbenchError
from core.store import Store

KEYS = itertools.count()
HOUR = dt.timedelta(hours=1)


def this_hour() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)


NOW = this_hour()  # the tests may outlast the hour


@pytest.fixture
def usage(store):
    usage = Usage(store)
    yield usage
    usage.close()


def record(usage, **values):
    usage.record(**{"endpoint": "/v1/completions", "status": 200, "duration_s": 1.0, "at": NOW, **values})


def test_requests_are_written_without_being_asked_to(usage, store):
    record(usage, key_id="k", model="m", ttft_s=0.25, prompt_tokens=7, output_tokens=5)
    until(lambda: usage.latest())
    (one,) = Usage(store).latest()
    assert (one.key_id, one.model, one.endpoint, one.status) == ("k", "m", "/v1/completions", 200)
    assert (one.duration_s, one.ttft_s, one.prompt_tokens, one.output_tokens) == (1.0, 0.25, 7, 5)
    assert one.at.tzinfo is not None


def test_an_hour_counts_all_requests_but_times_those_that_were_answered(usage):
    for seconds in (1.0, 2.0, 4.0):
        record(usage, duration_s=seconds, prompt_tokens=10, output_tokens=2, ttft_s=seconds / 10)
    record(usage, status=429, duration_s=0.001)
    record(usage, status=499, duration_s=60.0, output_tokens=3)
    usage.flush()
    hour, *_ = usage.hours(NOW)
    assert (hour.requests, hour.errors, hour.prompt_tokens, hour.output_tokens) == (5, 2, 30, 9)
    assert hour.p50_s == 2.0
    assert hour.p95_s == pytest.approx(3.8)  # a tenth of the way back from the last to the middle one
    assert hour.p50_ttft_s == pytest.approx(0.2)
    assert usage.statuses(NOW) == {200: 3, 429: 1, 499: 1}


def test_hours_without_requests_are_there_and_have_no_latency(usage):
    record(usage, at=NOW - 3 * HOUR, duration_s=2.0)
    record(usage, status=401, at=NOW - HOUR)
    usage.flush()
    hours = usage.hours(NOW - 3 * HOUR + dt.timedelta(minutes=20))
    assert [hour.hour for hour in hours[:4]] == [NOW - step * HOUR for step in (3, 2, 1, 0)]
    assert [(hour.requests, hour.errors, hour.p50_s) for hour in hours[:4]] == [
        (1, 0, 2.0),
        (0, 0, None),
        (1, 1, None),
        (0, 0, None),
    ]


def test_a_key_is_counted_apart(usage):
    record(usage, key_id="a", duration_s=1.0)
    record(usage, key_id="b", duration_s=9.0)
    record(usage, duration_s=5.0)
    usage.flush()
    assert [hour.p50_s for hour in usage.hours(NOW, key_id="b")][:1] == [9.0]
    assert [hour.requests for hour in usage.hours(NOW)][:1] == [3]


def test_tokens_of_a_day_hold_what_is_not_written_yet_and_what_was_before(usage, store):
    midnight = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    record(usage, key_id="k", prompt_tokens=100, at=midnight - dt.timedelta(seconds=1))
    record(usage, key_id="k", prompt_tokens=30, output_tokens=4, at=midnight)
    usage.flush()
    record(usage, key_id="k", prompt_tokens=5, at=None)
    record(usage, key_id="other", prompt_tokens=1000, at=None)
    assert usage.tokens_today("k") == 39
    record(usage, key_id="k", output_tokens=1, at=None)
    assert usage.tokens_today("k") == 40
    usage.flush()
    assert Usage(store).tokens_today("k") == 40  # after a restart
    assert usage.tokens_today("never seen") == 0


def test_many_threads_lose_and_double_nothing(usage):
    def ask():
        for _ in range(200):
            record(usage, key_id="k", output_tokens=1, at=None)
            usage.tokens_today("k")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        usage.flush()
    usage.close()
    assert sum(hour.requests for hour in usage.hours(NOW - HOUR)) == 800
    assert usage.tokens_today("k") == 800


def test_a_full_disk_delays_what_is_kept(usage, store, monkeypatch):
    def full(_self):
        raise WorkbenchError("The catalogue can't be written: disk full.")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "transaction", full)
        record(usage, key_id="k", output_tokens=8)
        with pytest.raises(WorkbenchError, match="disk full"):
            usage.flush()
        assert usage.latest() == ()
    usage.flush()
    assert [one.output_tokens for one in usage.latest()] == [8]


def test_what_is_older_than_ninety_days_goes(usage):
    now = dt.datetime.now(dt.UTC)
    record(usage, model="old", at=now - dt.timedelta(days=KEPT_DAYS, hours=1))
    record(usage, model="kept", at=now - dt.timedelta(days=KEPT_DAYS - 1))
    until(lambda: [one.model for one in usage.latest()] == ["kept"])


def test_texts_from_outside_are_kept_short(usage):
    record(usage, endpoint="/" + "x" * 10_000, model="y" * 10_000)
    usage.flush()
    (one,) = usage.latest()
    assert len(one.endpoint) == len(one.model) == 200


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_percentiles_are_numpys(usage, durations):
    key_id = f"{next(KEYS)}"  # each example has a key of its own
    for seconds in durations:
        record(usage, key_id=key_id, duration_s=seconds, at=NOW)
    usage.flush()
    hour, *_ = usage.hours(NOW, key_id=key_id)
    assert hour.p50_s == pytest.approx(np.percentile(durations, 50))
    assert hour.p95_s == pytest.approx(np.percentile(durations, 95))


def test_an_hour_that_is_over_is_read_once_and_the_one_that_runs_each_time(usage, monkeypatch):
    now = this_hour()
    record(usage, at=now - 3 * HOUR)
    usage.flush()
    before = usage.hours(now - 3 * HOUR)
    read_from = []
    original = usage._hours_from
    monkeypatch.setattr(
        usage, "_hours_from", lambda hour, key_id: read_from.append(hour) or original(hour, key_id)
    )
    record(usage, at=now)
    usage.flush()
    after = usage.hours(now - 3 * HOUR)
    assert after[:2] == before[:2] and after[3].requests == before[3].requests + 1
    assert read_from[0] >= now - HOUR
