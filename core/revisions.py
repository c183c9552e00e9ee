"""Doing a part of a run again: rows that failed, answers that were cut, rows whose request changed.

What is to be done again keeps its old result until the new one is there.
"""

from __future__ import annotations

from dataclasses import asdict

from core import results
from core.errors import RunError
from core.run_spec import Instructions
from core.runs import Run
from core.store import Store

_CUT = """status = 'ok' AND (finish_reason = 'length' OR list_contains(
    json_extract_string(samples, '$[*].finish_reason'), 'length'))"""


def retry_failed(run: Run, store: Store) -> int:
    """Have the rows that ended in an error done again. Returns how many; start the run to do them.

    Raises RunError, as the others here, while the run is at work or in the queue.
    """
    return _mark(run, store, "status = 'error'")


def redo_truncated(run: Run, store: Store, max_tokens: int) -> int:
    """Have the rows with an answer that was cut at max_tokens done again with more. Returns how many."""
    now = run.spec.params.get("max_tokens")
    if now is not None and max_tokens <= now:
        raise RunError(f"The answers were cut at {now:,} tokens already.", hint="Allow more than that.")
    changed = _mark(run, store, _CUT)
    run.update(params={**run.spec.params, "max_tokens": max_tokens})
    return changed


def edit(run: Run, store: Store, instructions: Instructions) -> int:
    """Ask something else of the rows; only those whose request changes get a new answer.

    Returns the rows to look at; which of them changed shows as the run comes to them.
    Raises as `Run.configure`, and then nothing changed.
    """
    run.check(instructions)
    # before the new instructions: a kill in between leaves answers that are looked at once more,
    # never answers to what is no longer asked
    changed = _mark(run, store, "true")
    run.configure(instructions)
    return changed


def instructions_of(run: Run) -> Instructions:
    """What is asked now, to be edited."""
    spec = run.spec
    return Instructions.asking(
        spec.prompt,
        params=spec.params,
        answer_column=spec.answer_column,
        overflow=spec.overflow,
        output=spec.output,
        evaluation=spec.evaluation,
        plan=spec.plan,
        engine=spec.engine,
    )


def _mark(run: Run, store: Store, condition: str) -> int:
    record = store.run(run.run_id)
    if record is not None and record.is_at_work:
        raise RunError(f"Run {run.run_id} is at work.", hint="Stop it first.")
    with run.connect() as connection:
        changed = results.mark_stale(connection, condition)
        counts = results.read_counts(connection)
    if changed:
        store.update_run(run.run_id, state="stopped", message="", **asdict(counts))
    return changed
