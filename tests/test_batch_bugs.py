"""What once went wrong in batch runs: lost, doubled and stale answers, runs that read as what they aren't."""

import errno
import json
import threading
import time
from dataclasses import replace

import batch_runs
import pytest
from batch_runs import write_csv
from waiting import until

from core import batch, disk, results, revisions, run_queue
from core.engines import scripted, watch
from core.engines.scripted import ScriptedEngine
from core.errors import EngineDied, RunError, WorkbenchError
from core.run_spec import Instructions, OutputSpec, OverflowSpec, PlanSpec


def finish(jobs, run):
    """To its end, with one result a row."""
    progress = batch_runs.finish(jobs, run)
    with run.connect() as connection:
        rows = connection.execute("SELECT _row FROM results ORDER BY _row").fetchall()
        assert results.read_counts(connection) == progress.counts
    assert [row for (row,) in rows] == list(range(progress.rows))
    return progress


def answered(run):
    return run.preview(100, with_answers=True)


# -- a full disk -----------------------------------------------------------------------


class DiesOfPoison(ScriptedEngine):
    deaths = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dead = False

    async def complete(self, request):
        if "poison" in self.decode(request.prompt) and not self.dead:
            self.dead = True
            DiesOfPoison.deaths += 1
        await self.check()
        return await super().complete(request)

    async def check(self):
        if self.dead:
            raise EngineDied("The engine's process ended.")


def test_a_row_set_aside_before_a_full_disk_gets_one_result(make_batches, tmp_path, monkeypatch):
    """It was kept in mind over the pause and pending after it: two results, and a table with a row more."""
    monkeypatch.setattr(scripted, "ScriptedEngine", DiesOfPoison)
    monkeypatch.setattr(watch, "RESTART_DELAYS_S", (0.0,) * 9)
    monkeypatch.setattr(disk, "_LOOK_EVERY_S", 0.01)
    DiesOfPoison.deaths = 0
    append, refused = results.append, []

    def full_once(connection, new, *args, **kwargs):
        if DiesOfPoison.deaths >= 2 and new and not refused:
            refused.append(True)
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(connection, new, *args, **kwargs)

    monkeypatch.setattr(results, "append", full_once)
    jobs = make_batches(scripted_tokens_per_s=20, max_num_seqs=2).jobs
    table = write_csv(tmp_path / "t.csv", ["text"], [["poison"], *([f"fine {n}"] for n in range(12))])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}"))
    counts = finish(jobs, run).counts
    assert refused
    assert (counts.ok, counts.errors) == (12, 1)


def test_answers_that_were_kept_although_the_disk_said_it_was_full_are_not_kept_twice(
    make_batches, tmp_path, monkeypatch
):
    """A commit can reach the log and fail after that, when the log is written into the database."""
    monkeypatch.setattr(disk, "_LOOK_EVERY_S", 0.01)
    append, refused = results.append, []

    def full_after_the_commit(connection, new, *args, **kwargs):
        counts = append(connection, new, *args, **kwargs)
        if new and not refused:
            refused.append(True)
            raise OSError(errno.ENOSPC, "No space left on device")
        return counts

    monkeypatch.setattr(results, "append", full_after_the_commit)
    jobs = make_batches().jobs
    table = write_csv(tmp_path / "t.csv", ["text"], [[f"text {n}"] for n in range(5)])
    assert finish(jobs, jobs.stage(table, instructions=Instructions(template="{{ text }}"))).counts.ok == 5
    assert refused


def test_a_run_whose_end_the_catalogue_could_not_take_does_not_read_as_at_work_for_ever(
    jobs, batches, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_queue, "_TELL_AGAIN_S", 0.01)
    tell, refusing = batches.store.update_run, threading.Event()
    refusing.set()

    def full(run_id, **values):
        if refusing.is_set() and "ok" in values:
            raise WorkbenchError("The catalogue can't be written: database or disk is full.")
        tell(run_id, **values)

    monkeypatch.setattr(batches.store, "update_run", full)
    run = jobs.stage(write_csv(tmp_path / "t.csv", ["t"], [["a"]]), instructions=Instructions(template="x"))
    jobs.start(run.run_id)
    jobs.wait(run.run_id, 30)
    refusing.clear()
    until(lambda: batches.store.run(run.run_id).state == "finished")
    assert batches.store.run(run.run_id).ok == 1
    jobs.delete(run.run_id)


# -- who may touch a run -------------------------------------------------------------------


def test_nothing_of_a_run_goes_on_once_it_reads_as_stopped(jobs, tmp_path, monkeypatch):
    """A step that a stop cut off wrote run.json while the end wrote it too: "An unexpected error"."""
    describe, inside, ended = batch.machine.describe, threading.Event(), []

    def slowly():
        inside.set()
        time.sleep(0.3)
        ended.append(True)
        return describe()

    monkeypatch.setattr(batch.machine, "describe", slowly)
    run = jobs.stage(write_csv(tmp_path / "t.csv", ["t"], [["a"]]), instructions=Instructions(template="x"))
    jobs.start(run.run_id)
    assert inside.wait(10)
    jobs.stop(run.run_id)
    assert jobs.wait(run.run_id, 30).state == "stopped"
    assert ended
    finish(jobs, run)


def test_a_page_and_the_job_may_write_run_json_at_once(jobs, tmp_path):
    run = jobs.stage(write_csv(tmp_path / "t.csv", ["t"], [["a"]]), instructions=Instructions(template="x"))
    names = ("params", "machine")

    def write_often(name):
        for number in range(40):
            run.update(**{name: {"seed": number}})

    threads = [threading.Thread(target=write_often, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [getattr(run.spec, name) for name in names] == [{"seed": 39}] * 2


def test_a_run_in_the_queue_is_not_revised(make_batches, tmp_path):
    _runtime, store, jobs = make_batches(scripted_tokens_per_s=5, max_num_seqs=1)
    table = write_csv(tmp_path / "t.csv", ["t"], [[f"text {n}"] for n in range(9)])
    runs = [jobs.stage(table, instructions=Instructions(template="{{ t }}")) for _ in range(2)]
    for run in runs:
        jobs.start(run.run_id)
    for run in runs:
        before = run.spec.params, run.spec.prompt
        for revise in (
            lambda run: revisions.retry_failed(run, store),
            lambda run: revisions.redo_truncated(run, store, 1000),
            lambda run: revisions.edit(run, store, Instructions(template="other {{ t }}")),
        ):
            with pytest.raises(RunError, match="at work"):
                revise(run)
        assert run.spec.prompt == before[1]
        assert "max_tokens" not in run.spec.params or run.spec.params["max_tokens"] != 1000


def test_rows_are_not_answered_by_a_model_loaded_in_mid_run(make_batches, tmp_path, monkeypatch):
    class Other(ScriptedEngine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.info = replace(self.info, model="other")

    runtime, _store, jobs = make_batches(scripted_tokens_per_s=20, max_num_seqs=1)
    table = write_csv(tmp_path / "t.csv", ["t"], [[f"text {n}"] for n in range(40)])
    run = jobs.stage(table, instructions=Instructions(template="{{ t }}"))
    jobs.start(run.run_id)
    until(lambda: jobs.progress(run.run_id).counts.done > 0)
    monkeypatch.setattr(scripted, "ScriptedEngine", Other)
    runtime.load()
    failed = jobs.wait(run.run_id, 30)
    assert failed.state == "failed"
    assert "begun with scripted, and other is loaded" in failed.message
    assert failed.counts.done < 40


# -- which answers still hold ----------------------------------------------------------------


def test_a_plan_younger_than_the_answers_does_not_double_them(jobs, tmp_path):
    """The second of two equal rows was answered, the first not: a run of an older version, say."""
    table = write_csv(tmp_path / "t.csv", ["text"], [["same"], ["other"], ["same"], ["same"]])
    asked = Instructions(template="{{ text }}", params={"temperature": 0}, plan=PlanSpec(dedupe=False))
    run = jobs.stage(table, instructions=asked)
    finish(jobs, run)
    with run.connect() as connection:
        connection.execute("DELETE FROM results WHERE _row IN (0, 3)")
    run.update(plan=PlanSpec())
    progress = finish(jobs, run)
    assert (progress.generated, progress.counts.shared) == (0, 2)
    assert len({row["answer"] for row in answered(run)}) == 2


def edited(batches, run, **changes):
    """How many requests an edit of the parameters costs."""
    asked = revisions.instructions_of(run)
    revisions.edit(run, batches.store, asked.model_copy(update={"params": {**asked.params, **changes}}))
    return finish(batches.jobs, run).generated


def test_an_edit_looks_at_each_of_n_answers(jobs, batches, tmp_path):
    """Three answers cut at 3 tokens, 9 in all, were taken for one that a limit of 9 would cut as well."""
    table = write_csv(tmp_path / "t.csv", ["text"], [["one two three four five six"], ["a"]])
    run = jobs.stage(
        table, instructions=Instructions(template="{{ text }}", params={"max_tokens": 3, "n": 3})
    )
    finish(jobs, run)
    assert edited(batches, run, max_tokens=9) == 1
    assert edited(batches, run, max_tokens=20) == 0


def test_an_edit_of_max_tokens_asks_talks_again_whose_first_turn_it_cut(jobs, batches, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["one two three four five six"]])
    asked = Instructions(
        template="{{ text }}",
        turns=("Yes?",),
        params={"max_tokens": 3, "structured_outputs": {"choice": ["a"]}},
    )
    run = jobs.stage(table, instructions=asked)
    finish(jobs, run)
    assert answered(run)[0]["answer_finish_reason"] == "stop"
    assert edited(batches, run, max_tokens=50) == 2
    assert "six" in answered(run)[0]["answer_turn_1"]
    assert edited(batches, run) == 0


def test_an_edit_of_max_tokens_asks_rows_again_whose_prompt_is_cut_elsewhere(make_batches, tmp_path):
    """What the prompt may have is what max_tokens leaves of the context."""
    batches = make_batches(max_model_len=60)
    table = write_csv(tmp_path / "t.csv", ["text"], [[f"start {'word ' * 100}"], ["short"]])
    asked = Instructions(
        template="{{ text }}", params={"max_tokens": 20}, overflow=OverflowSpec(action="right")
    )
    run = batches.jobs.stage(table, instructions=asked)
    finish(batches.jobs, run)
    assert edited(batches, run, max_tokens=30) == 1
    assert answered(run)[0]["answer_prompt_tokens"] == 30


def test_a_cut_answer_that_is_not_the_first_of_n_is_redone(jobs, batches, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["a"], ["b"]])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}", params={"n": 2}))
    finish(jobs, run)
    samples = [{"text": "x", "finish_reason": reason, "output_tokens": 2} for reason in ("stop", "length")]
    with run.connect() as connection:
        connection.execute("UPDATE results SET samples = ? WHERE _row = 1", [json.dumps(samples)])
    assert revisions.redo_truncated(run, batches.store, 1000) == 1


# -- what the table says -------------------------------------------------------------------------


def test_the_mean_logprob_is_over_the_answers_own_tokens(jobs, tmp_path):
    """It was divided by the tokens of all turns, or of all n answers."""
    table = write_csv(tmp_path / "t.csv", ["text"], [["a b c d e"]])
    plain = Instructions(template="{{ text }}", params={"logprobs": 0}, output=OutputSpec(logprobs=True))
    for asked in (
        plain.model_copy(update={"turns": ("Why?",)}),
        plain.model_copy(update={"params": {"logprobs": 0, "n": 3}}),
        plain.model_copy(
            update={"params": {"logprobs": 0, "n": 3}, "output": OutputSpec(logprobs=True, samples="rows")}
        ),
    ):
        run = jobs.stage(table, instructions=asked)
        finish(jobs, run)
        run.export(tmp_path / "out.jsonl")
        row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[0])
        tokens = len(row["answer"].split())
        assert row["answer_mean_logprob"] == pytest.approx(row["answer_logprob"] / tokens)


def test_no_answer_is_dropped_where_a_column_says_how_many_there_are(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text", "n"], [["a", "3"], ["b", ""]])
    for samples in ("columns", "rows"):
        asked = Instructions(
            template="{{ text }}", param_columns={"n": "n"}, output=OutputSpec(samples=samples)
        )
        run = jobs.stage(table, instructions=asked)
        finish(jobs, run)
        run.export(tmp_path / "out.jsonl")
        rows = [
            json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        if samples == "columns":
            assert len(set(json.loads(rows[0]["answer_samples"]))) == 3
            assert rows[1]["answer_samples"] is None
        else:
            assert [row["answer_sample"] for row in rows] == [1, 2, 3, 1]


def test_a_table_with_a_column_called_row_can_be_asked_by_any_column(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["row", "the text"], [["1", "hello"]])
    run = jobs.stage(table, instructions=Instructions(prompt_column="the text"))
    assert finish(jobs, run).counts.ok == 1
    assert answered(run)[0]["answer"].endswith("hello")


def test_max_tokens_over_the_context_is_named_as_what_leaves_no_room(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["short"]])
    asked = Instructions(
        template="{{ text }}", params={"max_tokens": 9000}, overflow=OverflowSpec(action="left")
    )
    run = jobs.stage(table, instructions=asked)
    assert finish(jobs, run).counts.errors == 1
    assert "max_tokens=9,000 leaves no room" in answered(run)[0]["answer_error"]


def test_a_run_of_an_older_version_is_counted_read_and_gone_on_with(jobs, batches, tmp_path):
    """Its database lacks columns; the command line's resume failed on the first count."""
    table = write_csv(tmp_path / "t.csv", ["text"], [["a"], ["b"]])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}"))
    jobs.start(run.run_id, rows=1)
    jobs.wait(run.run_id, 30)
    with run.connect() as connection:
        for name in ("request_key", "same_as", "logprob", "answer_tokens", "samples", "turns", "stale"):
            connection.execute(f"ALTER TABLE results DROP COLUMN {name}")
        for name in ("plan", "copies", "plan_info"):
            connection.execute(f"DROP TABLE {name}")
    batches.store.delete_run(run.run_id)
    assert jobs.progress(run.run_id).counts.ok == 1
    assert run.counts().ok == 1
    assert revisions.edit(run, batches.store, revisions.instructions_of(run)) == 1
    assert finish(jobs, run).generated == 2


def test_a_try_in_turns_and_a_stop_at_once_leave_a_run_that_finishes(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [[f"text {n % 7}"] for n in range(30)])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}", params={"temperature": 0}))
    for _again in range(5):
        jobs.start(run.run_id, rows=1)
        jobs.stop(run.run_id)
        jobs.start(run.run_id)
        jobs.stop(run.run_id)
        assert jobs.wait(run.run_id, 30).state in ("stopped", "finished")
    assert finish(jobs, run).counts.ok == 30


def test_a_run_started_while_some_of_its_rows_are_tried_does_all(make_batches, tmp_path):
    jobs = make_batches(scripted_tokens_per_s=40, max_num_seqs=4).jobs
    table = write_csv(tmp_path / "t.csv", ["text"], [[f"text {n}"] for n in range(12)])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}"))
    jobs.start(run.run_id, rows=4)
    until(lambda: jobs.progress(run.run_id).state == "running")
    assert finish(jobs, run).counts.ok == 12


def test_a_run_that_never_had_a_turn_is_not_waited_for(jobs, tmp_path):
    run = jobs.stage(write_csv(tmp_path / "t.csv", ["t"], [["a"]]), instructions=Instructions(template="x"))
    assert jobs.wait(run.run_id, 1).state == "draft"


@pytest.mark.parametrize("format", ["openai-batch", "jsonl"])
def test_answers_larger_than_the_databases_memory_are_written(jobs, tmp_path, format):
    """A part had as many rows as the file's own cells allow; OpenAI's results were sorted all at once."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    lines = [
        json.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(6_000)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run = jobs.stage(tmp_path / "t.jsonl", instructions=Instructions(mode="openai"))
    with run.connect() as connection:
        for start in range(0, 6_000, 1_000):
            connection.execute(
                "INSERT INTO results (_row, status, answer) "
                "SELECT _row, 'ok', repeat(md5(_row::VARCHAR), 1000) FROM input WHERE _row BETWEEN ? AND ?",
                [start, start + 999],
            )
    assert run.export(tmp_path / "out.jsonl", format=format) == 6_000
    with (tmp_path / "out.jsonl").open(encoding="utf-8") as file:
        assert [json.loads(line)["custom_id"] for line in file] == [str(n) for n in range(6_000)]
