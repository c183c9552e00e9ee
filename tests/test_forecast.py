"""The forecast of a run, with the scripted engine: what is expected, and that it comes."""

import datetime as dt

import pytest
from batch_runs import finish

from core.errors import RunError
from core.planning import plans
from core.planning.forecast import EXACT_ROWS, NO_RATE, forecast
from core.run_spec import Instructions, OverflowSpec, SessionSpec
from core.types import Message

ASKED = Instructions(template="Say {{ text }}", params={"temperature": 0, "max_tokens": 50})


@pytest.fixture
def expect(batches, tmp_path):
    """Stage a table of one column, `text`, and forecast it: (run, forecast)."""

    def make(texts, asked=ASKED):
        path = tmp_path / "table.csv"
        path.write_text("text,n\n" + "".join(f'"{text}",1\n' for text in texts), encoding="utf-8")
        run = batches.jobs.stage(path, instructions=asked)
        return run, forecast(run, batches.runtime.engine, batches.store)

    return make


def read(run, query):
    with run.connect() as connection:
        return connection.execute(query).fetchall()


def worked(run, *, minutes_ago=0, **values):
    """Give the run one stretch of work, as if it had taken place."""
    started = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=minutes_ago)
    session = SessionSpec(started_at=started, state="finished", **values)
    run.update(sessions=(session,))


def test_prompt_tokens_of_a_small_table_are_exact(expect, jobs):
    run, expected = expect([f"{n} words" for n in range(60)] + ["0 words"] * 5)
    assert (expected.rows, expected.requests, expected.duplicates, expected.exact) == (65, 60, 5, True)
    assert expected.spec().prompt_tokens == finish(jobs, run).counts.prompt_tokens


def test_a_large_tables_tokens_are_estimated_from_stretches_of_all_of_it(expect, jobs):
    # prompts get longer and longer: a sample of the first rows would be far off
    run, expected = expect([f"row {n} " + "word " * (n // 100) for n in range(3 * EXACT_ROWS)])
    assert not expected.exact
    assert expected.sampled == EXACT_ROWS
    came = finish(jobs, run).counts.prompt_tokens
    assert expected.prompt_tokens == pytest.approx(came, rel=0.02)
    assert sum(expected.prompt_counts) == pytest.approx(expected.requests, rel=0.02)


def test_the_histogram_holds_every_prompt_once(expect, batches):
    _run, expected = expect(["a", "a b", "a b c", *["word " * 90 + str(n) for n in range(7)]])
    engine = batches.runtime.engine
    (shortest,) = engine.encode(engine.render_chat([[Message("user", "Say a")]]))
    assert expected.prompt_bins[0] == len(shortest)
    assert len(expected.prompt_bins) == len(expected.prompt_counts) + 1
    assert sum(expected.prompt_counts) == 10
    assert sum(expected.prompt_counts[:2]) == 3
    assert expected.prompt_counts[-1] == 7
    assert expected.prompt_bins[-1] > len(shortest) + 90
    assert expected.prompt_tokens_mean == expected.prompt_tokens / 10


@pytest.mark.parametrize("action", ["error", "left"])
def test_rows_over_the_limit_are_counted_whatever_becomes_of_them(expect, jobs, action):
    asked = Instructions(
        template="{{ text }}",
        params={"max_tokens": 8},
        overflow=OverflowSpec(action=action, prompt_tokens=40),
    )
    run, expected = expect(["short", "word " * 100, "word " * 200, "", "fine"], asked)
    assert (expected.over_limit, expected.unusable) == (2, 1)
    assert sum(expected.prompt_counts) == 4
    counts = finish(jobs, run).counts
    assert counts.errors == (2 if action == "error" else 0)
    [(sent,)] = read(run, "SELECT sum(prompt_tokens) FROM results WHERE status = 'ok'")
    assert expected.prompt_tokens == sent


def test_the_prefix_hits_expected_are_those_that_come(expect, jobs):
    documents = [" ".join(f"d{n}w{word}" for word in range(100)) for n in range(5)]
    run, expected = expect([f"{documents[n % 5]} question {n}" for n in range(100)])
    progress = finish(jobs, run)
    assert expected.plan.reordered
    assert expected.cached_share > 0.8
    assert expected.cached_share == pytest.approx(progress.cached_share, abs=0.02)


def test_without_shared_beginnings_no_hits_are_expected(expect):
    _run, expected = expect([f"{n} " + " ".join(f"w{n}x{word}" for word in range(50)) for n in range(40)])
    assert expected.cached_share == 0.0


# -- output tokens and time ----------------------------------------------------


def test_without_any_measurement_it_says_so(expect):
    _run, expected = expect(["a", "b"])
    assert (expected.seconds, expected.seconds_basis) == (None, NO_RATE)
    assert expected.output_is_bound
    assert expected.output_tokens == 100
    assert "At most max_tokens" in expected.output_basis
    assert (expected.spec().output_tokens, expected.spec().seconds) == (None, None)


def test_answers_of_this_run_come_first_and_stale_ones_do_not_count(expect, jobs, batches):
    run, _expected = expect([f"text {n}" for n in range(20)])
    jobs.start(run.run_id, rows=5)
    jobs.wait(run.run_id, timeout_s=30)
    [(mean,)] = read(run, "SELECT avg(output_tokens) FROM results")
    expected = forecast(run, batches.runtime.engine, batches.store)
    assert "this run's 5 answers" in expected.output_basis
    assert expected.output_tokens == round(20 * mean)
    with run.connect() as connection:
        connection.execute("UPDATE results SET stale = true, output_tokens = 1")
    assert "this run" not in forecast(run, batches.runtime.engine, batches.store).output_basis


def test_earlier_runs_with_the_same_max_tokens_tell_the_length_of_answers(expect, jobs):
    run, _expected = expect(["a", "b"])
    finish(jobs, run)
    worked(run, generated=10, prompt_tokens=100, output_tokens=170, wall_s=1.0)
    _run, expected = expect(["c", "d", "e"])
    assert (expected.output_tokens, expected.output_is_bound) == (51, False)
    assert "10 answers of earlier runs with max_tokens 50" in expected.output_basis
    other = Instructions(template="Say {{ text }}", params={"max_tokens": 60})
    assert expect(["c"], other)[1].output_is_bound


def test_ignore_eos_makes_the_bound_the_expectation(expect):
    asked = Instructions(template="{{ text }}", params={"max_tokens": 9, "ignore_eos": True})
    _run, expected = expect(["a", "b"], asked)
    assert (expected.output_tokens, expected.output_is_bound) == (18, False)


def test_the_time_comes_from_the_tokens_computed_in_earlier_runs(expect, jobs):
    slots = 256
    for minutes, generated, tokens, seconds in ((1, slots, 5_000, 10), (2, 3, 9, 100), (3, slots, 9_000, 4)):
        run, _expected = expect(["a", "b"])
        finish(jobs, run)
        worked(run, minutes_ago=minutes, generated=generated, prompt_tokens=tokens + 700, cached_tokens=700,
               output_tokens=0, wall_s=seconds)  # fmt: skip
    asked = Instructions(template="{{ text }}", params={"max_tokens": 60, "ignore_eos": True})
    _run, expected = expect([f"{n}" for n in range(50)], asked)
    # the first only: the second left the engine half empty, the third was too short to tell
    assert expected.seconds == pytest.approx((expected.prompt_tokens + 50 * 60) / 500)
    assert "500 tokens/s" in expected.seconds_basis
    assert "the last stretch of work" in expected.seconds_basis


def test_a_short_try_tells_the_time_where_nothing_else_does(expect, jobs):
    run, _expected = expect(["a", "b"])
    finish(jobs, run)
    worked(run, generated=10, prompt_tokens=600, output_tokens=400, wall_s=10.0)
    _run, expected = expect(["c"], Instructions(template="{{ text }}", params={"max_tokens": 7}))
    assert expected.seconds == pytest.approx((expected.prompt_tokens + 7) / 100)
    assert "did not fill the engine" in expected.seconds_basis
    assert expected.seconds_basis.startswith("At most")


def test_a_run_folder_that_is_gone_does_not_stop_a_forecast(expect, jobs):
    run, _expected = expect(["a"])
    finish(jobs, run)
    (run.folder / "run.json").write_text("{", encoding="utf-8")
    assert expect(["b"])[1].seconds_basis == NO_RATE


def test_the_start_finds_the_forecasts_plan(expect, jobs):
    run, expected = expect([f"text {n}" for n in range(20)])
    finish(jobs, run)
    with run.connect() as connection:
        assert plans.info(connection) == expected.plan


def test_nothing_can_be_said_before_something_is_asked(jobs, batches, tmp_path):
    (tmp_path / "t.csv").write_text("text\na\n", encoding="utf-8")
    run = jobs.stage(tmp_path / "t.csv")
    with pytest.raises(RunError, match="no prompt"):
        forecast(run, batches.runtime.engine, batches.store)
