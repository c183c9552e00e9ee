"""The queue of batch runs: who works, who waits, what a pause, a priority and a restart do."""

import asyncio
import os
import sqlite3
import threading

import psutil
import pytest
from waiting import until

from core.engines import scripted
from core.engines.scripted import ScriptedEngine
from core.errors import RunBusy, RunError, RunNotFound
from core.jobs import Jobs
from core.run_queue import RunPriority
from core.run_spec import Instructions
from core.store import RunRecord, Store, new_id

ROWS, KEPT = 24, 6


class Gated(ScriptedEngine):
    """Answers at once, but rows that say "hold" only when the gate is open.

    While it is slow to stop, what is cancelled does not end.
    """

    gate = threading.Event()
    slow_to_stop = threading.Event()

    async def complete(self, request):
        try:
            while "hold" in self.decode(request.prompt) and not self.gate.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        finally:
            while self.slow_to_stop.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return await super().complete(request)


@pytest.fixture
def batches(make_batches, monkeypatch):
    monkeypatch.setattr(scripted, "ScriptedEngine", Gated)
    Gated.gate.clear()
    Gated.slow_to_stop.clear()
    return make_batches(max_num_seqs=2)


@pytest.fixture
def store(batches):
    return batches.store


@pytest.fixture
def stage(jobs, tmp_path):
    """Makes a run. Without a number of rows: one whose first 6 rows are easy and whose others are held."""

    def stage(name, rows=None):
        held = [f"hold {name} {number}" for number in range(KEPT, ROWS)] if rows is None else []
        easy = [f"{name} {number}" for number in range(rows or KEPT)]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["text", *easy, *held]), encoding="utf-8")
        return jobs.stage(path, instructions=Instructions(template="{{ text }}")).run_id

    return stage


def begin(jobs, run_id, **options):
    """Start it and wait until only held rows are left."""
    jobs.start(run_id, **options)
    until(lambda: jobs.progress(run_id).counts.done == KEPT)


def shown(jobs):
    """The queue as [(name, state, position)]."""
    return [(entry.name.partition(".")[0], entry.state, entry.position) for entry in jobs.queue()]


def ended(jobs, run_id):
    return jobs.wait(run_id, timeout_s=60)


def rows_in(jobs, run_id):
    with jobs.open(run_id).connect() as connection:
        return connection.execute("SELECT count(*), count(DISTINCT _row) FROM results").fetchone()


def test_the_queue_is_shown_in_the_order_it_will_run(jobs, stage):
    first, low, second = stage("first"), stage("low", 2), stage("second", 2)
    begin(jobs, first)
    jobs.start(low, priority=RunPriority.LOW)
    jobs.start(second)
    assert shown(jobs) == [("first", "running", 1), ("second", "queued", 2), ("low", "queued", 3)]
    assert [entry.priority.name for entry in jobs.queue()] == ["NORMAL", "NORMAL", "LOW"]
    Gated.gate.set()
    ended(jobs, second)
    assert jobs.progress(first).state == "finished"
    assert ended(jobs, low).state == "finished"
    assert jobs.queue() == []


def test_a_run_of_higher_priority_takes_the_turn_and_the_other_goes_on_where_it_was(jobs, store, stage):
    slow, urgent = stage("slow"), stage("urgent", 3)
    begin(jobs, slow)
    jobs.start(urgent, priority=RunPriority.HIGH)
    assert ended(jobs, urgent).state == "finished"
    assert store.run(slow).done == KEPT
    assert jobs.is_here(slow)
    Gated.gate.set()
    progress = ended(jobs, slow)
    assert (progress.state, progress.counts.ok) == ("finished", ROWS)
    assert progress.generated == ROWS - KEPT
    assert rows_in(jobs, slow) == (ROWS, ROWS)
    assert [session.state for session in jobs.open(slow).spec.sessions] == ["queued", "finished"]


def test_a_run_that_stepped_back_is_shown_as_waiting_not_as_ended(jobs, store, stage):
    slow, urgent = stage("slow"), stage("urgent")
    begin(jobs, slow)
    jobs.start(urgent, priority=RunPriority.HIGH)
    until(lambda: shown(jobs) == [("urgent", "running", 1), ("slow", "queued", 2)])
    assert jobs.progress(slow).state == store.run(slow).state == "queued"
    assert jobs.progress(slow).counts.done == KEPT
    with pytest.raises(TimeoutError):
        jobs.wait(slow, timeout_s=0)


def test_the_same_priority_waits(jobs, stage):
    first, second = stage("first"), stage("second", 2)
    begin(jobs, first, priority=RunPriority.HIGH)
    jobs.start(second, priority=RunPriority.HIGH)
    Gated.gate.set()
    ended(jobs, second)
    assert len(jobs.open(first).spec.sessions) == 1
    assert jobs.progress(first).state == "finished"


@pytest.mark.parametrize(("changed", "priority"), [("second", RunPriority.HIGH), ("first", RunPriority.LOW)])
def test_a_change_of_priority_counts_at_once_and_is_kept(jobs, store, stage, changed, priority):
    runs = {"first": stage("first"), "second": stage("second", 3)}
    begin(jobs, runs["first"])
    jobs.start(runs["second"])
    jobs.set_priority(runs[changed], priority)
    assert store.run(runs[changed]).priority == priority
    assert ended(jobs, runs["second"]).state == "finished"
    assert store.run(runs["first"]).done == KEPT
    Gated.gate.set()
    assert ended(jobs, runs["first"]).state == "finished"


def test_a_priority_given_to_a_draft_holds_when_it_starts(jobs, stage):
    first, urgent = stage("first"), stage("urgent", 2)
    jobs.set_priority(urgent, RunPriority.HIGH)
    begin(jobs, first)
    jobs.start(urgent)
    ended(jobs, urgent)
    assert [session.state for session in jobs.open(first).spec.sessions] == ["queued"]
    with pytest.raises(RunNotFound):
        jobs.set_priority("nothing", RunPriority.HIGH)


def test_a_paused_run_lets_the_others_through_and_stays_until_it_is_started(jobs, store, stage):
    first, second = stage("first"), stage("second", 3)
    begin(jobs, first)
    jobs.start(second)
    jobs.pause(first)
    paused = ended(jobs, first)
    assert paused.state == store.run(first).state == "paused"
    assert paused.counts.done == KEPT
    assert ended(jobs, second).state == "finished"
    assert shown(jobs) == [("first", "paused", None)]
    assert not jobs.is_here(first)
    Gated.gate.set()
    jobs.start(first)
    progress = ended(jobs, first)
    assert (progress.state, progress.generated) == ("finished", ROWS - KEPT)
    assert rows_in(jobs, first) == (ROWS, ROWS)


def test_a_waiting_run_pauses_and_stops_at_once(jobs, store, stage):
    first, second, third = stage("first"), stage("second", 2), stage("third", 2)
    begin(jobs, first)
    jobs.start(second)
    jobs.start(third)
    jobs.pause(second)
    jobs.stop(third)
    assert shown(jobs) == [("first", "running", 1), ("second", "paused", None)]
    assert ended(jobs, third).state == store.run(third).state == "stopped"
    Gated.gate.set()
    ended(jobs, first)
    assert jobs.progress(second).counts.done == 0
    jobs.stop(second)
    assert jobs.progress(second).state == "stopped"
    assert jobs.queue() == []


def test_a_start_takes_back_a_pause_that_is_still_under_way(jobs, stage):
    run_id = stage("first")
    begin(jobs, run_id)
    Gated.slow_to_stop.set()
    jobs.pause(run_id)
    assert [(entry.state, entry.is_ending) for entry in jobs.queue()] == [("running", True)]
    jobs.start(run_id)
    Gated.slow_to_stop.clear()
    Gated.gate.set()
    progress = ended(jobs, run_id)
    assert (progress.state, progress.counts.ok) == ("finished", ROWS)


def test_a_pause_while_stepping_back_is_a_pause(jobs, stage):
    first, urgent = stage("first"), stage("urgent", 2)
    begin(jobs, first)
    Gated.slow_to_stop.set()
    jobs.start(urgent, priority=RunPriority.HIGH)
    jobs.pause(first)
    Gated.slow_to_stop.clear()
    assert ended(jobs, first).state == "paused"
    ended(jobs, urgent)
    assert shown(jobs) == [("first", "paused", None)]


def test_only_some_rows_are_tried(jobs, store, stage):
    run_id = stage("first")
    jobs.start(run_id, rows=5)
    tried = ended(jobs, run_id)
    assert (tried.state, tried.message, tried.counts.done) == ("stopped", "Tried 5 rows.", 5)
    assert store.run(run_id).message == "Tried 5 rows."
    Gated.gate.set()
    jobs.start(run_id)
    assert ended(jobs, run_id).counts.ok == ROWS
    jobs.start(run_id, rows=5)
    assert ended(jobs, run_id).state == "finished"


def test_a_trial_that_stepped_back_tries_only_what_was_left_of_it(jobs, stage):
    trial, urgent = stage("trial"), stage("urgent", 2)
    begin(jobs, trial, rows=12)
    jobs.start(urgent, priority=RunPriority.HIGH)
    ended(jobs, urgent)
    Gated.gate.set()
    tried = ended(jobs, trial)
    assert len(jobs.open(trial).spec.sessions) == 2
    assert (tried.state, tried.message, tried.counts.done) == ("stopped", "Tried 12 rows.", 12)


def test_a_run_that_can_not_even_begin_fails_alone(jobs, store, stage):
    first, broken, last = stage("first"), stage("broken", 2), stage("last", 2)
    begin(jobs, first)
    jobs.start(broken)
    jobs.start(last)
    (jobs.open(broken).folder / "run.json").write_text("{")
    Gated.gate.set()
    assert ended(jobs, last).state == "finished"
    assert ended(jobs, broken).state == store.run(broken).state == "failed"
    assert "run.json can't be read" in store.run(broken).message


def test_after_a_restart_waiting_runs_are_interrupted_paused_ones_paused_and_all_can_go_on(
    batches, store, jobs, stage
):
    paused, first, waiting = stage("paused"), stage("first"), stage("waiting", 2)
    begin(jobs, paused)
    jobs.pause(paused)
    ended(jobs, paused)
    begin(jobs, first)
    jobs.start(waiting, priority=RunPriority.LOW)
    jobs.close()
    with pytest.raises(RunError, match="closing"):
        jobs.start(first)
    states = {name: store.run(run_id).state for name, run_id in (("p", paused), ("f", first), ("w", waiting))}
    assert states == {"p": "paused", "f": "interrupted", "w": "interrupted"}
    again = Jobs(batches.runtime, store)
    assert shown(again) == [("paused", "paused", None)]
    for run_id in (first, waiting, paused):
        again.start(run_id)
    assert [name for name, _state, _position in shown(again)] == ["first", "paused", "waiting"]
    Gated.gate.set()
    assert {ended(again, run_id).state for run_id in (paused, first, waiting)} == {"finished"}
    again.close()


def test_what_a_killed_process_left_waiting_or_paused(jobs, store, stage):
    nobody = {"owner_pid": 2**22 + 1, "owner_started": 1.0}
    waiting, full_disk, by_hand = stage("waiting", 2), stage("full", 2), stage("hand", 2)
    store.update_run(waiting, state="queued", **nobody)
    store.update_run(full_disk, state="paused", **nobody)
    store.update_run(by_hand, state="paused")
    states = [store.run(run_id).state for run_id in (waiting, full_disk, by_hand)]
    assert states == ["interrupted", "interrupted", "paused"]
    assert shown(jobs) == [("hand", "paused", None)]
    for run_id in (waiting, full_disk, by_hand):
        jobs.start(run_id)
        assert ended(jobs, run_id).state == "finished"


@pytest.mark.parametrize("state", ["running", "queued", "paused"])
def test_a_run_of_another_process_is_left_alone(jobs, store, stage, state):
    parent = psutil.Process(os.getppid())
    run_id = stage("theirs", 2)
    store.update_run(run_id, state=state, owner_pid=parent.pid, owner_started=parent.create_time())
    with pytest.raises(RunBusy, match=str(parent.pid)):
        jobs.start(run_id)
    with pytest.raises(RunError, match="at work"):
        jobs.delete(run_id)
    jobs.stop(run_id)
    assert store.run(run_id).state == state
    assert jobs.queue() == []


def test_a_waiting_run_is_not_deleted(jobs, stage):
    first, second = stage("first"), stage("second", 2)
    begin(jobs, first)
    jobs.start(second)
    with pytest.raises(RunError, match="at work"):
        jobs.delete(second)
    jobs.pause(second)
    jobs.delete(second)
    assert shown(jobs) == [("first", "running", 1)]


OLD_RUNS = """
CREATE TABLE runs (
    run_id TEXT NOT NULL, created_at DATETIME NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    message TEXT NOT NULL, model TEXT NOT NULL, rows INTEGER NOT NULL, ok INTEGER NOT NULL,
    errors INTEGER NOT NULL, skipped INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, wall_s FLOAT NOT NULL, owner_pid INTEGER, owner_started FLOAT,
    PRIMARY KEY (run_id))
"""


def test_a_catalogue_of_before_opens_and_keeps_its_runs(tmp_path):
    path = tmp_path / "workbench.sqlite"
    old = sqlite3.connect(path)
    old.execute(OLD_RUNS)
    row = (
        "r1",
        "2026-01-02 03:04:05.000000",
        "old.csv",
        "stopped",
        "",
        "m",
        9,
        4,
        1,
        0,
        7,
        8,
        1.5,
        None,
        None,
    )
    old.execute(f"INSERT INTO runs VALUES ({', '.join('?' * 15)})", row)
    old.commit()
    old.close()
    for _opening in range(2):
        store = Store(path)
        record = store.run("r1")
        assert (record.name, record.state, record.done, record.priority) == ("old.csv", "stopped", 5, 0)
        store.update_run("r1", priority=1)
        assert store.run("r1").priority == 1
        store.update_run("r1", priority=0)
        new = RunRecord(run_id=new_id(), created_at=record.created_at, name="new.csv", state="draft")
        store.add_run(new)
        assert store.run(new.run_id) == new
        store.close()
