"""Prompts under parameter sets: generated together, kept, stopped, resumed, reopened, searched."""

import datetime as dt
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from waiting import until

from core.answers import read_logprobs
from core.catalogue_schema import compare_cells
from core.catalogue_schema import comparisons as kept_comparisons
from core.comparing.cell import Place
from core.comparing.estimate import Measured, estimate
from core.comparing.runner import Comparisons
from core.comparing.spec import read_spec
from core.engines.scripted import ScriptedEngine
from core.errors import TemplateError, WorkbenchError
from core.store import RunRecord
from core.types import EngineSpec

ROOT = Path(__file__).parents[1]
ENDLESS = {"ignore_eos": True, "max_tokens": 1500}  # 15 s
COLD = {"name": "cold", "params": {"temperature": 0, "max_tokens": 3}}
WARM = {"name": "warm", "params": {"temperature": 1.0}}


def make(prompts=("Why is it so?", "How is it done?"), sets=(COLD, WARM), seeds=(1, 2), **values):
    return read_spec(
        {"prompts": [{"messages": one} for one in prompts], "sets": sets, "seeds": seeds, **values}
    )


@pytest.fixture
def comparisons(runtime, store):
    comparisons = Comparisons(runtime, store)
    yield comparisons
    comparisons.close()


def ended(comparisons, comparison_id):
    return until(lambda: not (view := comparisons.view(comparison_id)).is_live and view)


def texts(view):
    return {place: cell.text for place, cell in view.cells.items()}


def test_every_cell_is_answered_and_kept(comparisons, runtime, store):
    spec = make()
    comparison_id = comparisons.start(spec)
    assert comparisons.view(comparison_id).is_live
    view = ended(comparisons, comparison_id)
    assert view.spec == spec and view.counts == {"complete": 8} and view.name == "Why is it so?"
    cold, warm = (view.cells[Place(1, place, 0)] for place in (0, 1))
    assert cold.details["finish_reason"] == "length" and cold.details["output_tokens"] == 3
    assert warm.details["finish_reason"] == "stop" and warm.details["params"]["seed"] == 1
    assert all(
        cell.details["ttft_s"] > 0 and cell.details["mean_logprob"] < 0 for cell in view.cells.values()
    )
    assert all("logprobs" not in cell.details for cell in view.cells.values())
    assert len({view.cells[Place(0, 1, sample)].text for sample in (0, 1)}) == 2
    assert Comparisons(runtime, store).view(comparison_id) == view


def test_cells_are_generated_at_the_same_time(comparisons, runtime):
    comparison_id = comparisons.start(make(sets=({"name": "endless", "params": ENDLESS},), seeds=(1, 2, 3)))
    until(lambda: runtime.engine.stats().running == 6)
    comparisons.stop(comparison_id)
    ended(comparisons, comparison_id)


def test_no_more_are_in_flight_than_a_batch_may_have(make_scripted_runtime, store):
    runtime = make_scripted_runtime(scripted_tokens_per_s=200.0, max_num_seqs=3)
    comparisons = Comparisons(runtime, store)
    comparison_id = comparisons.start(make(seeds=(1, 2, 3, 4)))
    most = 0
    while (view := comparisons.view(comparison_id)).is_live:
        most = max(most, runtime.engine.stats().running)
    assert view.counts == {"complete": 16} and 1 < most <= 3
    comparisons.close()


def test_token_probabilities_are_kept_when_asked_for(comparisons):
    view = ended(comparisons, comparisons.start(make(top_logprobs=2)))
    tokens = read_logprobs(view.cells[Place(0, 0, 0)].details)
    assert len(tokens) == 3 and len(tokens[0].alternatives) == 2


def test_system_prompts_templates_and_styles_reach_the_model(comparisons):
    sets = (
        {"name": "system", "system": "Be brief."},
        {"name": "template", "template": "Tell me: {{ prompt }}"},
        {"name": "completion", "style": "completion"},
        {"name": "alpaca", "style": "Alpaca"},
    )
    view = ended(comparisons, comparisons.start(make(("Why not?",), sets, (None,))))
    system, template, completion, alpaca = (view.cells[Place(0, place, 0)].text for place in range(4))
    assert "Be brief. Why not?" in system and "Tell me: Why not?" in template
    assert completion.endswith("Why not?")
    assert "appropriately completes the request." in alpaca


def test_an_unknown_style_is_refused_and_nothing_kept(comparisons):
    with pytest.raises(TemplateError, match="no prompt style 'Vicuna'"):
        comparisons.start(make(sets=({"name": "x", "style": "Vicuna"},)))
    assert comparisons.list() == []


def test_a_beam_search_is_a_set_like_the_others(comparisons):
    beams = {"name": "beams", "params": {"beam_width": 4}}
    view = ended(comparisons, comparisons.start(make(sets=(COLD, beams), seeds=(None,))))
    assert view.counts == {"complete": 4}
    assert all(cell.details["mean_logprob"] < 0 for cell in view.cells.values())


def test_stop_keeps_what_there_is_and_resume_does_the_rest(make_scripted_runtime, store):
    runtime = make_scripted_runtime(scripted_tokens_per_s=100.0, max_num_seqs=3)
    comparisons = Comparisons(runtime, store)
    long = {"name": "long", "params": {"ignore_eos": True, "max_tokens": 40}}
    comparison_id = comparisons.start(make(sets=(COLD, long)))
    until(
        lambda: len({cell.state for cell in comparisons.view(comparison_id).cells.values() if cell.text}) == 2
    )
    comparisons.stop(comparison_id)
    stopped = ended(comparisons, comparison_id)
    assert stopped.counts["missing"] >= 1 and stopped.counts["stopped"] >= 1
    assert any(cell.text for cell in stopped.cells.values() if cell.state == "stopped")
    done = {place: cell for place, cell in stopped.cells.items() if cell.state == "complete"}
    comparisons.resume(comparison_id)
    with pytest.raises(WorkbenchError, match="is being answered"):
        comparisons.resume(comparison_id)
    view = ended(comparisons, comparison_id)
    assert view.counts == {"complete": 8}
    assert {place: view.cells[place] for place in done} == done
    comparisons.close()


def test_closing_the_app_keeps_the_texts_as_interrupted(comparisons, runtime, store):
    comparison_id = comparisons.start(make(sets=({"name": "endless", "params": ENDLESS},), seeds=(1,)))
    until(lambda: all(cell.text for cell in comparisons.view(comparison_id).cells.values()))
    comparisons.close()
    view = Comparisons(runtime, store).view(comparison_id)
    assert view.counts == {"interrupted": 2} and all(cell.text for cell in view.cells.values())


def test_a_prompt_too_long_is_its_own_cells_error(comparisons):
    view = ended(comparisons, comparisons.start(make(("word " * 9000, "Why?"), seeds=(1,))))
    assert view.counts == {"error": 2, "complete": 2}
    assert "too long" in view.cells[Place(0, 0, 0)].details["error"]


_WORKER = """
import sys
import time
from core.comparing.estimate import Measured, estimate
from core.comparing.runner import Comparisons
from core.comparing.spec import read_spec
from core.runtime import Runtime
from core.store import Store
runtime = Runtime()
runtime.load()
runtime.wait_ready(20)
comparisons = Comparisons(runtime, Store(runtime.settings.catalogue_path))
print(comparisons.start(read_spec(sys.stdin.read())), flush=True)
time.sleep(60)
"""


def test_after_a_kill_nothing_that_was_done_is_lost_or_done_again(settings, runtime, store):
    long = {"name": "long", "params": {"ignore_eos": True, "max_tokens": 1500}}
    spec = make(sets=(COLD, long))
    environment = {
        **os.environ, "WORKBENCH_HOME": str(settings.home), "WORKBENCH_ENGINE": "scripted",
        "WORKBENCH_SCRIPTED_TOKENS_PER_S": "60",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(spec.model_dump_json())
        process.stdin.close()
        comparison_id = process.stdout.readline().strip()
        comparisons = Comparisons(runtime, store)
        # another process is at it: it shows as live here, and can't be taken from it
        until(lambda: comparisons.view(comparison_id).complete == 4)
        until(lambda: all(cell.text for cell in comparisons.view(comparison_id).cells.values()))
        assert comparisons.view(comparison_id).is_live and comparisons.list()[0].is_live
        with pytest.raises(WorkbenchError, match="is being answered"):
            comparisons.resume(comparison_id)
        os.kill(process.pid, signal.SIGKILL)
    killed = comparisons.view(comparison_id)
    assert killed.counts == {"complete": 4, "interrupted": 4} and not killed.is_live
    store.execute(
        sa.update(compare_cells).where(compare_cells.c.state == "complete").values(text="as it was")
    )
    comparisons.resume(comparison_id)
    until(lambda: comparisons.view(comparison_id).counts.get("generating") == 4)
    comparisons.stop(comparison_id)
    view = ended(comparisons, comparison_id)
    assert [view.cells[Place(0, place, 0)].text for place in (0,)] == ["as it was"]
    assert view.counts == {"complete": 4, "stopped": 4}
    comparisons.close()


# -- the list -------------------------------------------------------------------------


def test_comparisons_are_listed_searched_renamed_and_deleted(comparisons, store):
    first = comparisons.start(make(("Why is the SKY blue?",), name="One 100%"))
    second = comparisons.start(make(("Wie heißt die STRASSE?",), seeds=(None,)))
    ended(comparisons, first)
    ended(comparisons, second)
    listed = comparisons.list()
    assert [one.comparison_id for one in listed] == [second, first]
    assert [(one.name, one.complete, one.answers) for one in listed] == [
        ("Wie heißt die STRASSE?", 2, 2), ("One 100%", 4, 4),
    ]  # fmt: skip
    for search, found in (
        ("sky", [first]),
        ("straße", [second]),
        ("100%", [first]),
        ("%", [first]),
        ("WARM", [second, first]),
    ):
        assert [one.comparison_id for one in comparisons.list(search=search)] == found, search
    comparisons.rename(first, "Blue_")
    assert comparisons.view(first).name == comparisons.view(first).spec.name == "Blue_"
    assert [one.name for one in comparisons.list(search="blue_")] == ["Blue_"]
    assert len(comparisons.list(limit=1)) == 1
    comparisons.delete(first)
    assert comparisons.view(first) is None and len(comparisons.list()) == 1
    assert not store.all(sa.select(compare_cells).where(compare_cells.c.comparison_id == first))
    for call in (
        lambda: comparisons.rename(first, "x"),
        lambda: comparisons.resume(first),
        lambda: comparisons.rename(second, " "),
    ):
        with pytest.raises(WorkbenchError):
            call()


def test_deleted_while_it_runs_it_stays_deleted(comparisons, runtime, store):
    comparison_id = comparisons.start(make(sets=({"name": "endless", "params": ENDLESS},)))
    until(lambda: runtime.engine.stats().running)
    comparisons.delete(comparison_id)
    until(lambda: not runtime.engine.stats().running)
    comparisons.close()
    assert comparisons.view(comparison_id) is None
    assert not store.all(sa.select(compare_cells))


def test_a_comparison_of_an_earlier_version_is_listed_opened_and_resumed(comparisons, store):
    cells = [
        {"name": "cold", "params": {"temperature": 0.0}, "text": "Because.", "state": "complete",
         "details": {"output_tokens": 2, "finish_reason": "stop"}},
        {"name": "cold", "params": {"temperature": 0.7}, "text": "Half an", "state": "generating",
         "details": {}},
    ]  # fmt: skip
    body = {
        "prompt": "Why?",
        "system": "Be brief.",
        "cells": cells,
        "owner_pid": 2**22 + 1,
        "owner_started": 1.0,
    }
    then = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    store.execute(sa.insert(kept_comparisons).values(comparison_id="old", created_at=then, body=body))
    (listed,) = comparisons.list()
    assert (listed.name, listed.answers, listed.complete) == ("Why?", 2, 1)
    view = comparisons.view("old")
    assert [one.name for one in view.spec.sets] == ["cold", "cold (2)"]
    assert [message.content for message in view.spec.prompts[0].messages] == ["Be brief.", "Why?"]
    assert [(cell.text, cell.state) for cell in view.cells.values()] == [
        ("Because.", "complete"), ("Half an", "interrupted"),
    ]  # fmt: skip
    comparisons.resume("old")
    assert ended(comparisons, "old").cells[Place(0, 0, 0)].text == "Because."
    assert comparisons.view("old").counts == {"complete": 2}


def test_an_estimate_comes_from_what_answers_took_before(comparisons):
    spec = make(seeds=(1, 2, 3))
    before = comparisons.estimate(spec)
    assert (before.generations, before.is_bound, before.seconds) == (12, True, None)
    assert before.output_tokens == 6 * 3 + 6 * 256
    ended(comparisons, comparisons.start(make()))
    after = comparisons.estimate(spec)
    assert not after.is_bound and after.output_tokens < before.output_tokens and after.seconds > 0
    assert comparisons.estimate(make(seeds=tuple(range(50)))).seconds > after.seconds


INFO = ScriptedEngine(EngineSpec(engine="scripted", max_num_seqs=8)).info
BEFORE = Measured(
    model="scripted", answers=10, output_tokens=400, seconds=4.0, at_once=4, max_tokens=50, cut=0.5
)


@pytest.mark.parametrize(
    ("max_tokens", "measured", "tokens", "seconds"),
    [
        (20, BEFORE, 8 * 20, 1.6),
        (50, BEFORE, 8 * 40, 3.2),
        (90, BEFORE, 8 * (40 + 20), 4.8),  # the half that was cut goes on
        (50, replace(BEFORE, at_once=16), 8 * 40, 6.4),
        (50, replace(BEFORE, model="another"), 8 * 50, None),
    ],
)
def test_an_estimate_minds_limits_and_how_full_the_engine_is(max_tokens, measured, tokens, seconds):
    spec = make(sets=({"name": "one", "params": {"max_tokens": max_tokens}},), seeds=(1, 2, 3, 4))
    found = estimate(spec, INFO, [measured], [])
    assert found.output_tokens == tokens
    assert found.seconds == (seconds if seconds is None else pytest.approx(seconds))


def test_before_the_first_comparison_a_batchs_speed_tells_the_time():
    run = RunRecord(
        run_id="r", created_at=dt.datetime.now(dt.UTC), name="r", state="finished", model="scripted", ok=100,
        output_tokens=1000, wall_s=10.0,
    )  # fmt: skip
    found = estimate(make(sets=(COLD,), seeds=(1, 2)), INFO, [], [run])
    assert (found.output_tokens, found.is_bound, found.seconds) == (
        12,
        True,
        pytest.approx(12 / (100 * 4 / 8)),
    )
    assert estimate(make(), None, [], [run]).seconds is None


def test_a_full_disk_loses_no_answer_that_somebody_reads(comparisons, store, monkeypatch, caplog):
    """The end of a comparison whose saves failed for a while is kept as soon as there is room again."""
    real, failing = type(store).transaction, [True]

    def transaction(self):
        if failing[0]:
            raise WorkbenchError("The catalogue can't be written: disk full.")
        return real(self)

    long = {"name": "long", "params": {"ignore_eos": True, "max_tokens": 120}}
    comparison_id = comparisons.start(make(sets=(COLD, long)))
    monkeypatch.setattr(type(store), "transaction", transaction)
    until(lambda: comparisons.view(comparison_id).complete == 4)
    until(lambda: "could not be saved" in caplog.text)
    failing[0] = False
    assert ended(comparisons, comparison_id).counts == {"complete": 8}
    assert set(texts(comparisons.view(comparison_id)).values()) - {""}
