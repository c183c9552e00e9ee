"""Batch runs through the scripted engine: every row ends once, with its cause, whatever happens."""

import asyncio
import concurrent.futures
import json
import os
import shutil
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from batch_runs import finish, read_csv
from waiting import until

from core import results
from core.engines import scripted, watch
from core.engines.scripted import ScriptedEngine
from core.errors import EngineDied, ParameterError, RunError, RunNotFound, TableError, UnknownColumn
from core.jobs import Jobs
from core.run_spec import Instructions
from core.runs import Run
from core.types import EngineSpec


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    lines = [f"{number:03d},text {number},\r\n" for number in range(40)]
    path.write_text("id,text,empty\r\n" + "".join(lines), encoding="utf-8", newline="")
    return path


def test_every_row_comes_back_in_order_with_its_own_values(jobs, table, tmp_path):
    run = jobs.stage(table, instructions=Instructions(template="Say {{ text }}"))
    progress = finish(jobs, run)
    assert (progress.rows, progress.counts.ok, progress.generated) == (40, 40, 40)
    run.export(tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert list(rows[0]) == [
        "id", "text", "empty", "answer", "answer_status", "answer_error",
        "answer_finish_reason", "answer_prompt_tokens", "answer_output_tokens",
    ]  # fmt: skip
    assert [row["id"] for row in rows] == [f"{number:03d}" for number in range(40)]
    assert all(row["answer"].endswith(f"Say text {number}") for number, row in enumerate(rows))
    assert {row["answer_status"] for row in rows} == {"ok"}
    assert sum(int(row["answer_output_tokens"]) for row in rows) == progress.counts.output_tokens


def test_answers_do_not_depend_on_the_run(jobs, table):
    answers = []
    for _repeat in range(2):
        run = jobs.stage(table, instructions=Instructions(prompt_column="text", params={"temperature": 0}))
        finish(jobs, run)
        answers.append([row["answer"] for row in run.preview(40, with_answers=True)])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 40


def test_bad_rows_are_marked_and_do_not_stop_good_ones(jobs, tmp_path):
    path = tmp_path / "ragged.csv"
    path.write_text('id,text\n1,good\n2,one,too many\n3\n4,""\n5,fine\n', encoding="utf-8")
    run = jobs.stage(path, instructions=Instructions(template="{{ text }}"))
    progress = finish(jobs, run)
    rows = run.preview(10, with_answers=True)
    assert [row["answer_status"] for row in rows] == ["ok", "error", "error", "skipped", "ok"]
    assert "line 3" in rows[1]["answer_error"]
    assert "line 4 ends before column 'text'" in rows[2]["answer_error"]
    assert (progress.counts.ok, progress.counts.errors, progress.counts.skipped) == (2, 2, 1)
    assert progress.generated == 2


def test_a_short_row_is_used_when_what_is_missing_is_not_asked_for(jobs, tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("id,text\n1,good\n2\n", encoding="utf-8")
    run = jobs.stage(path, instructions=Instructions(template="Number {{ id }}"))
    assert finish(jobs, run).counts.ok == 2


def test_a_prompt_over_the_context_is_an_error_of_that_row(jobs, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"text": "short"}, {"text": "word " * 9000}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    run = jobs.stage(path, instructions=Instructions(template="{{ text }}"))
    finish(jobs, run)
    first, second = run.preview(2, with_answers=True)
    assert first["answer_status"] == "ok"
    assert second["answer_status"] == "error"
    assert "8,192" in second["answer_error"]


def test_a_template_that_fails_on_one_row_fails_that_row(jobs, tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("a,b\n6,2\n6,0\n", encoding="utf-8")
    run = jobs.stage(path, instructions=Instructions(template="{{ (a|int / b|int)|int }}"))
    finish(jobs, run)
    rows = run.preview(2, with_answers=True)
    assert [row["answer_status"] for row in rows] == ["ok", "error"]
    assert "division by zero" in rows[1]["answer_error"]


@pytest.mark.parametrize(
    ("instructions", "error"),
    [
        (Instructions(template="{{ nothing }}"), UnknownColumn),
        (Instructions(prompt_column="nothing"), UnknownColumn),
        (Instructions(template="{{ text }}", params={"temperature": -1}), ParameterError),
        (Instructions(template="{{ text }}", answer_column="id"), TableError),
        (Instructions(template="{{ text }}", answer_column=""), TableError),
    ],
)
def test_what_can_not_work_is_refused_before_the_run_and_leaves_nothing(jobs, table, instructions, error):
    runs_dir = jobs.stage(table).folder.parent
    before = set(runs_dir.iterdir())
    with pytest.raises(error):
        jobs.stage(table, instructions=instructions)
    assert set(runs_dir.iterdir()) == before


def test_a_column_that_clashes_with_a_status_column_is_named(jobs, tmp_path):
    path = tmp_path / "clash.csv"
    path.write_text("text,answer_status\nx,y\n", encoding="utf-8")
    with pytest.raises(TableError, match="answer_status"):
        jobs.stage(path, instructions=Instructions(template="{{ text }}"))


def test_rows_wait_inside_an_engine_that_has_room_for_that(make_batches, table):
    runtime, _store, jobs = make_batches(scripted_tokens_per_s=30, max_num_seqs=2)
    runtime.engine.info = replace(runtime.engine.info, batch_ahead=3)
    run = jobs.stage(table, instructions=Instructions(template="Say {{ text }}"))
    jobs.start(run.run_id)
    until(lambda: runtime.engine.stats().running == 5)
    most = 0
    while jobs.progress(run.run_id).state in ("queued", "running"):
        most = max(most, runtime.engine.stats().running)
    assert most == 5


def test_stop_keeps_what_is_done_and_resume_does_only_the_rest(make_batches, table, tmp_path):
    runtime, store, jobs = make_batches(scripted_tokens_per_s=30, max_num_seqs=2)
    run = jobs.stage(table, instructions=Instructions(template="Say {{ text }}"))
    jobs.start(run.run_id)
    until(lambda: jobs.progress(run.run_id).counts.done >= 4)
    jobs.stop(run.run_id)
    stopped = jobs.wait(run.run_id, timeout_s=20)
    assert stopped.state == "stopped"
    assert 4 <= stopped.counts.done < 40
    kept = stopped.counts.done
    assert store.run(run.run_id).state == "stopped"
    assert runtime.status().stats.running == 0
    # a part can be downloaded: rows not done yet have no status
    run.export(tmp_path / "part.csv")
    assert [row["answer_status"] for row in read_csv(tmp_path / "part.csv")].count("ok") == kept
    jobs.close()
    runtime.load(replace(runtime.default_spec(), max_num_seqs=32))
    jobs = Jobs(runtime, store)
    jobs.start(run.run_id)
    assert store.run(run.run_id).done >= kept  # a resumed run does not look empty until its first answer
    resumed = jobs.wait(run.run_id, timeout_s=60)
    assert resumed.state == "finished"
    assert resumed.generated == 40 - kept
    with run.connect() as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT _row) FROM results").fetchone()
    assert found == (40, 40)
    jobs.close()


def test_a_run_that_another_process_took_further_is_shown_as_it_is_now(make_batches, table):
    _runtime, store, jobs = make_batches(scripted_tokens_per_s=30, max_num_seqs=2)
    run = jobs.stage(table, instructions=Instructions(template="Say {{ text }}"))
    jobs.start(run.run_id)
    until(lambda: jobs.progress(run.run_id).counts.done > 0)
    jobs.stop(run.run_id)
    assert jobs.wait(run.run_id, timeout_s=20).state == "stopped"
    store.update_run(run.run_id, state="finished", ok=40)
    assert jobs.progress(run.run_id).state == "finished"
    assert jobs.progress(run.run_id).counts.done == 40


def test_a_run_is_not_resumed_with_another_model(make_batches, table):
    jobs = make_batches(scripted_tokens_per_s=60, max_num_seqs=2).jobs
    run = jobs.stage(table, instructions=Instructions(template="Say {{ text }}"))
    jobs.start(run.run_id)
    until(lambda: jobs.progress(run.run_id).counts.done > 0)
    jobs.stop(run.run_id)
    kept = jobs.wait(run.run_id, timeout_s=20).counts.done
    run.update(model=run.spec.model.model_copy(update={"name": "Qwen3-8B"}))
    jobs.start(run.run_id)
    refused = jobs.wait(run.run_id, timeout_s=20)
    assert (refused.state, refused.counts.done, refused.generated) == ("failed", kept, 0)
    assert "begun with Qwen3-8B" in refused.message
    assert run.spec.model.name == "Qwen3-8B"


def test_closing_the_workbench_leaves_a_run_that_offers_resume(make_batches, table):
    _runtime, store, jobs = make_batches(scripted_tokens_per_s=20, max_num_seqs=2)
    run = jobs.stage(table, instructions=Instructions(template="Say {{ text }}"))
    jobs.start(run.run_id)
    until(lambda: jobs.progress(run.run_id).counts.done > 0)
    jobs.close()
    record = store.run(run.run_id)
    assert record.state == "interrupted"
    assert 0 < record.done < 40


def test_two_runs_take_turns_and_both_finish(jobs, table):
    first = jobs.stage(table, instructions=Instructions(template="A {{ text }}"))
    second = jobs.stage(table, instructions=Instructions(template="B {{ text }}"))
    jobs.start(first.run_id)
    jobs.start(second.run_id)
    assert jobs.wait(first.run_id, timeout_s=30).state == "finished"
    assert jobs.wait(second.run_id, timeout_s=30).state == "finished"


def test_run_json_says_everything_needed_to_repeat_the_run(jobs, table):
    asked = Instructions(
        template="{{ text }}",
        system="Be {{ id }}.",
        params={"temperature": 0},
        engine=EngineSpec(engine="scripted"),
    )
    run = jobs.stage(table, instructions=asked)
    finish(jobs, run)
    spec = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert spec["run_id"] == run.folder.name
    assert spec["prompt"]["template"] == "{{ text }}"
    assert spec["prompt"]["system"] == "Be {{ id }}."
    assert spec["params"]["temperature"] == 0
    assert spec["params"]["max_tokens"] == 256
    assert spec["model"]["name"] == "scripted"
    assert spec["machine"]["cores"] >= 1
    assert spec["sessions"][0]["generated"] == 40


def test_a_copied_folder_is_a_copied_run(jobs, table, make_batches):
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}"))
    finish(jobs, run)
    elsewhere = make_batches()
    shutil.copytree(run.folder, elsewhere.runtime.settings.runs_dir / run.run_id)
    progress = elsewhere.jobs.progress(run.run_id)
    assert (progress.state, progress.counts.ok) == ("finished", 40)


def test_parquet_keeps_types_and_adds_answers(jobs, tmp_path):
    import pyarrow as pa

    path = tmp_path / "typed.parquet"
    original = pa.table(
        {"n": pa.array([1, 2, None], pa.int16()), "text": ["a", "b", "c"], "tags": [["x"], [], None]}
    )
    pq.write_table(original, path)
    run = jobs.stage(path, instructions=Instructions(template="{{ n }} {{ text }} {{ tags }}"))
    finish(jobs, run)
    run.export(tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(["n", "text", "tags"]).to_pylist() == original.to_pylist()
    assert out.column("n").type == pa.int16()
    assert out.column("answer_output_tokens").type == pa.int32()
    assert out.column("answer_status").to_pylist() == ["ok"] * 3


def test_an_answer_that_looks_like_a_formula_is_guarded_but_the_files_own_cells_are_not(jobs, tmp_path):
    path = tmp_path / "formula.csv"
    path.write_text("text\n=1+1\n", encoding="utf-8")
    run = jobs.stage(path, instructions=Instructions(template="{{ text }}"))
    with run.connect() as connection:
        answer = results.Result(row=0, status="ok", answer="=HYPERLINK(1)")
        reading = results.Reading(work_s=0.0, output_tokens_per_s=0.0)
        results.append(connection, [answer], reading, results.Counts())
    run.export(tmp_path / "safe.csv")
    run.export(tmp_path / "raw.csv", escape_formulas=False)
    assert read_csv(tmp_path / "safe.csv")[0]["text"] == "=1+1"
    assert read_csv(tmp_path / "safe.csv")[0]["answer"] == "'=HYPERLINK(1)"
    assert read_csv(tmp_path / "raw.csv")[0]["answer"] == "=HYPERLINK(1)"


def test_a_page_may_look_while_a_job_opens_and_closes_the_run(jobs, table):
    """DuckDB said "already attached" when one thread opened a file that another was just closing."""
    run = jobs.stage(table)
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        looks = [threads.submit(run.counts) for _look in range(600)]
    assert {look.result().done for look in looks} == {0}


def test_rows_of_a_hundred_thousand_characters_are_staged_run_and_exported(jobs, tmp_path):
    """DuckDB works on 2,048 rows at a time: the memory that serves for others could not hold so many."""
    path = tmp_path / "long.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("id,text\n")
        file.writelines(f"{number},{chr(97 + number % 26) * 140_000}\n" for number in range(2_100))
    run = jobs.stage(path, instructions=Instructions(template="{{ text[:20] }} {{ id }}"))
    assert finish(jobs, run).counts.ok == 2_100
    assert run.export(tmp_path / "out.csv") == 2_100
    assert (tmp_path / "out.csv").stat().st_size > 2_100 * 140_000


@pytest.mark.parametrize("run_id", ["nothing", "../runs", "", ".", "a/b"])
def test_an_unknown_run_is_said_so(jobs, run_id):
    with pytest.raises(RunNotFound):
        jobs.start(run_id)


def test_a_draft_without_a_prompt_does_not_start(jobs, table):
    run = jobs.stage(table)
    with pytest.raises(RunError, match="no prompt"):
        jobs.start(run.run_id)


def test_delete_removes_folder_and_entry(jobs, table):
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}"))
    finish(jobs, run)
    jobs.delete(run.run_id)
    assert not run.folder.exists()
    with pytest.raises(RunNotFound):
        Run.open(run.folder.parent, run.run_id)


class Killed(ScriptedEngine):
    """Dies of one prompt, and with it everything in flight, as a real engine's process does."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dead = False

    async def complete(self, request):
        if "poison" in self.decode(request.prompt):
            await asyncio.sleep(0.02)
            self.dead = True
        completion = await super().complete(request)
        await self.check()
        return completion

    async def check(self):
        if self.dead:
            raise EngineDied("The engine's process ended.")


def test_an_engine_that_dies_of_one_row_costs_that_row_only(make_batches, tmp_path, monkeypatch):
    monkeypatch.setattr(scripted, "ScriptedEngine", Killed)
    monkeypatch.setattr(watch, "RESTART_DELAYS_S", (0.0, 0.0, 0.0))
    path = tmp_path / "table.csv"
    rows = ["fine"] * 12 + ["poison"] + ["fine"] * 12
    path.write_text("text\n" + "".join(f"{text} {n}\n" for n, text in enumerate(rows)), encoding="utf-8")
    jobs = make_batches(scripted_tokens_per_s=100, max_num_seqs=8).jobs
    run = jobs.stage(path, instructions=Instructions(template="{{ text }}"))
    assert finish(jobs, run).counts.ok == 24
    answered = run.preview(25, with_answers=True)
    assert [row["answer_status"] for row in answered] == ["ok"] * 12 + ["error"] + ["ok"] * 12
    assert "died while it answered this row alone" in answered[12]["answer_error"]


def test_an_engine_that_can_not_be_restarted_ends_the_run_which_can_go_on_later(
    make_batches, tmp_path, monkeypatch
):
    monkeypatch.setattr(scripted, "ScriptedEngine", Killed)
    monkeypatch.setattr(watch, "RESTART_DELAYS_S", (0.0, 0.0, 0.0))
    path = tmp_path / "table.csv"
    path.write_text("text\n" + "".join(f"poison {n}\n" for n in range(8)), encoding="utf-8")
    runtime, _store, jobs = make_batches(scripted_tokens_per_s=100, max_num_seqs=2)
    run = jobs.stage(path, instructions=Instructions(template="{{ text }}"))
    jobs.start(run.run_id)
    failed = jobs.wait(run.run_id, timeout_s=30)
    assert failed.state == "failed"
    assert "The engine's process ended" in failed.message
    monkeypatch.setattr(scripted, "ScriptedEngine", ScriptedEngine)
    runtime.load()
    jobs.start(run.run_id)
    assert jobs.wait(run.run_id, timeout_s=30).state == "finished"


def test_what_was_left_behind_is_swept_and_nothing_else(table, batches):
    settings = batches.runtime.settings
    old_upload, new_upload = settings.uploads_dir / "old.csv", settings.uploads_dir / "new.csv"
    half, young_half = settings.runs_dir / "half", settings.runs_dir / "young"
    for folder in (half, young_half):
        folder.mkdir()
        (folder / "run.duckdb").write_bytes(b"half")
    for upload in (old_upload, new_upload):
        upload.write_text("a,b\n1,2\n")
    draft = Run.stage(settings.runs_dir, table)
    two_days_ago = time.time() - 2 * 86_400
    for path in (old_upload, half, draft.folder):
        os.utime(path, (two_days_ago, two_days_ago))
    batches.jobs.sweep()
    assert [path.name for path in settings.uploads_dir.iterdir()] == ["new.csv"]
    assert {path.name for path in settings.runs_dir.iterdir()} == {"young", draft.run_id}


def test_progress_is_kept_for_the_chart(make_batches, table):
    jobs = make_batches(scripted_tokens_per_s=40, max_num_seqs=8).jobs
    run = jobs.stage(table, instructions=Instructions(template="Say {{ text }}"))
    finish(jobs, run)
    readings = run.progress()
    assert len(readings) >= 2
    assert readings[-1].done == 40
    assert max(reading.output_tokens_per_s for reading in readings) > 0
