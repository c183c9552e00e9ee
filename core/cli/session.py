"""One `python -m core batch`: its runtime and job queue, from the staged file to the written table."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from core import evaluation, revisions, tables
from core.adapters.registry import Adapters
from core.batch import Progress
from core.cli.engine import EngineAsked
from core.errors import WorkbenchError
from core.jobs import Jobs
from core.run_spec import Instructions
from core.runs import Run
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.settings import Settings
from core.store import Store
from core.types import EngineSpec

_LARGE_FILE_BYTES = 64 << 20
_TERMINAL_EVERY_S, _LOG_EVERY_S = 1.0, 15.0


def say(text: str) -> None:
    """A line for the person at the terminal; stdout is for figures."""
    print(text, file=sys.stderr, flush=True)


class Session:
    """One command's runtime and job queue; leaves nothing running behind."""

    def __init__(self, settings: Settings) -> None:
        self.runtime = Runtime(settings)
        self.store = Store(settings.catalogue_path)
        self.jobs = Jobs(self.runtime, self.store)
        self.adapters = Adapters(settings, self.store)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.jobs.close()
        self.runtime.close()
        self.store.close()

    def engine_spec(self, asked: EngineAsked, before: EngineSpec | None = None) -> EngineSpec:
        """What to load, checked: as `EngineAsked.spec`."""
        return asked.spec(self.runtime, SavedSettings(self.store), before)

    def stage(
        self, input: Path, instructions: Instructions, options: tables.ReadOptions, limit: int | None
    ) -> Run:
        large = input.is_file() and input.stat().st_size > _LARGE_FILE_BYTES
        if large:  # reading takes as long as the load: do both at once
            self.runtime.load(instructions.engine)
        run = self.jobs.stage(input, options=options, limit=limit, instructions=instructions)
        say(f"run {run.run_id}: {input.name}, rows: {run.spec.input.rows:,}")
        for note in run.info().notes:
            say(f"note: {note}")
        if not large:
            self.runtime.load(instructions.engine)
        return run

    def reopen(
        self,
        run_id: str,
        asked: EngineAsked,
        *,
        retry_failed: bool,
        max_tokens: int | None,
    ) -> Run:
        run = self.jobs.open(run_id)
        run.recipe()
        if retry_failed:
            say(f"rows to retry: {revisions.retry_failed(run, self.store):,}")
        if max_tokens is not None:
            redone = revisions.redo_truncated(run, self.store, max_tokens)
            say(f"cut answers to do again with {max_tokens:,} tokens: {redone:,}")
        counts = run.counts()
        rows = run.spec.input.rows
        say(f"run {run_id}: {counts.done:,} of {rows:,} rows are done")
        if counts.done < rows:
            spec = run.spec.engine
            if asked or spec is None:
                spec = self.engine_spec(asked, spec)
            self.runtime.load(spec)
        return run

    def finish(
        self, run: Run, output: Path, escape_formulas: bool, format: str | None = None
    ) -> dict[str, Any]:
        """Do what is pending, write the table, and give the figures of this command."""
        counts = run.counts()
        if counts.done < run.spec.input.rows:
            self.jobs.start(run.run_id)
            progress = self._watch(run, output)
        else:
            progress = self.jobs.progress(run.run_id)
        if progress.state == "failed":
            hint = f"Go on with: {_resume_line(run, output)}"
            raise WorkbenchError(f"Run {run.run_id} could not go on: {progress.message}", hint=hint)
        run.export(output, format=format, escape_formulas=escape_formulas)
        counts = progress.counts
        session = run.spec.sessions[-1] if progress.generated else None
        wall_s = session.wall_s if session else 0.0
        new_tokens = session.output_tokens if session else 0
        summary = {
            "run_id": run.run_id,
            "rows": progress.rows,
            "ok": counts.ok,
            "errors": counts.errors,
            "skipped": counts.skipped,
            "shared": counts.shared,
            "generated": progress.generated,
            "prompt_tokens": counts.prompt_tokens,
            "output_tokens": counts.output_tokens,
            "wall_s": round(wall_s, 3),
            "output_tokens_per_s": round(new_tokens / wall_s, 2) if wall_s else 0.0,
            "output": str(output),
        }
        if run.spec.evaluation is not None:
            summary["evaluation"] = _evaluated(run)
        say(
            f"{counts.ok:,} ok, {counts.errors:,} errors, {counts.skipped:,} skipped; "
            f"{summary['output_tokens_per_s']:,} output tokens/s; written to {output}"
        )
        return summary

    def _watch(self, run: Run, output: Path) -> Progress:
        """Show the progress until the work has ended, and give how it ended."""
        terminal = sys.stderr.isatty()
        every_s = _TERMINAL_EVERY_S if terminal else _LOG_EVERY_S
        shown = time.monotonic()
        stage = paused = ""
        try:
            while True:
                try:
                    return self.jobs.wait(run.run_id, timeout_s=0.2)
                except TimeoutError:
                    status = self.runtime.status()
                    progress = self.jobs.progress(run.run_id)
                    if progress.state == "paused" and progress.message != paused:
                        say(progress.message)
                    paused = progress.message if progress.state == "paused" else ""
                    if status.phase != "ready" and status.stage != stage:
                        stage = status.stage
                        say(f"engine: {stage}")
                    elif status.phase == "ready" and time.monotonic() - shown >= every_s:
                        shown = time.monotonic()
                        line = _progress_line(progress)
                        print(line, end="\r" if terminal else "\n", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            self.jobs.stop(run.run_id)
            self.jobs.wait(run.run_id, timeout_s=30)
            say(f"stopped; go on with: {_resume_line(run, output)}")
            raise SystemExit(130) from None


def _evaluated(run: Run) -> dict[str, Any]:
    """Score the answers against the reference column, and say how they did."""
    with run.connect() as connection:
        found = evaluation.evaluate(connection, run.spec.evaluation, tables.info(connection).columns)
    for score in found.scores:
        interval = f"95% interval {score.low:.3f} to {score.high:.3f}, n={score.n:,}"
        say(f"{score.metric}: {score.mean:.3f} ({interval})")
    return {
        score.metric: {"mean": score.mean, "low": score.low, "high": score.high, "n": score.n}
        for score in found.scores
    }


def _resume_line(run: Run, output: Path) -> str:
    return f"python -m core batch --resume {run.run_id} -o {output}"


def _progress_line(progress: Progress) -> str:
    rate = f", {progress.output_tokens_per_s:,.0f} tokens/s" if progress.output_tokens_per_s else ""
    eta = f", about {progress.eta_s:,.0f} s left" if progress.eta_s is not None else ""
    errors = f", {progress.counts.errors:,} errors" if progress.counts.errors else ""
    return f"{progress.counts.done:,} of {progress.rows:,} rows{errors}{rate}{eta}   "
