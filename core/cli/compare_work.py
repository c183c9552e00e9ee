"""One `python -m core compare`: its runtime and comparison, from the specification to the written file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.adapters.registry import Adapters
from core.cli.engine import EngineAsked
from core.cli.session import say
from core.comparing import report
from core.comparing.judge import Judge
from core.comparing.runner import Comparisons, ComparisonView
from core.comparing.scores import METRICS, NO_DIFFERENCE, Scores, score
from core.comparing.spec import ComparisonSpec
from core.comparing.votes import win_rates
from core.errors import WorkbenchError
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.settings import Settings
from core.store import Store
from core.types import EngineSpec

WRITERS: Mapping[str, str] = MappingProxyType({".html": "page", ".csv": "table", ".json": "data"})
_POLL_S, _TERMINAL_EVERY_S, _LOG_EVERY_S = 0.2, 1.0, 15.0
_STOP_PATIENCE_S = 10.0


class Work:
    """One command's runtime and comparisons; leaves nothing running behind."""

    def __init__(self, settings: Settings, asked: EngineAsked) -> None:
        self.runtime = Runtime(settings)
        self.store = Store(settings.catalogue_path)
        self.comparisons = Comparisons(self.runtime, self.store)
        self._spec = asked.spec(self.runtime, SavedSettings(self.store))

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.comparisons.close()
        self.runtime.close()
        self.store.close()

    def start(self, spec: ComparisonSpec) -> str:
        self._spec = self._with_adapters(spec)
        self.runtime.load(self._spec)
        return self.comparisons.start(spec)

    def _with_adapters(self, spec: ComparisonSpec) -> EngineSpec:
        adapters = Adapters(self.runtime.settings, self.store)
        return adapters.needed(self._spec, [one.adapter for one in spec.sets])

    def resume(self, comparison_id: str) -> str:
        view = self.comparisons.view(comparison_id)
        if view is None:
            raise WorkbenchError(
                f"There is no comparison {comparison_id!r}.", hint="The compare page lists them."
            )
        if view.complete < view.spec.answers:
            self._spec = self._with_adapters(view.spec)
            self.runtime.load(self._spec)
            self.comparisons.resume(comparison_id)
        return comparison_id

    def finish(
        self, comparison_id: str, output: Path, judge: Judge | None, escape_formulas: bool
    ) -> dict[str, Any]:
        """Wait for the answers and the judge, write the file, and give the figures."""
        began = time.monotonic()
        try:
            view = self.comparisons.view(comparison_id)
            there = f", {view.complete:,} answers are there" if view.complete else ""
            # said where Ctrl-C is caught: whoever knows the id is told how to go on
            say(f"comparison {comparison_id}: {view.spec.words}{there}")
            self._follow(lambda: self._generating(comparison_id))
            seconds = time.monotonic() - began
            self._refuse_nothing(self.comparisons.view(comparison_id))
            if judge is not None:
                self._judged(comparison_id, judge)
        except KeyboardInterrupt:
            self._stopped(comparison_id)
            say(f"stopped; go on with: python -m core compare --resume {comparison_id} -o {output}")
            raise SystemExit(130) from None
        view = self.comparisons.view(comparison_id)
        votes = self.comparisons.votes.list(comparison_id)
        text = {
            ".html": lambda: report.to_html(view, votes),
            ".csv": lambda: report.to_csv(view, escape_formulas=escape_formulas),
            ".json": lambda: report.to_json(view, votes),
        }[output.suffix.lower()]()
        output.write_text(text, encoding="utf-8", newline="")
        scored = score(view.spec, view.cells)
        _say_scores(view, scored)
        for (first, second), rate in win_rates(votes).pairs.items():
            names = [view.spec.sets[place].name for place in (first, second)]
            interval = f"95% interval {rate.low:.2f} to {rate.high:.2f}, n={rate.n:,}"
            say(f"votes: {names[0]} against {names[1]}: {rate.rate:.2f} ({interval}): {rate.verdict}")
        say(f"{view.complete:,} of {view.spec.answers:,} answers complete; written to {output}")
        return {
            "comparison_id": comparison_id,
            "answers": view.spec.answers,
            **{state: count for state, count in view.counts.items() if count},
            "output_tokens": sum(cell.details.get("output_tokens") or 0 for cell in view.cells.values()),
            "wall_s": round(seconds, 3),
            "differences": report.differences(view, scored),
            "votes": len(votes),
            "output": str(output),
        }

    def _judged(self, comparison_id: str, judge: Judge) -> None:
        if self.runtime.status().phase == "empty" and judge.kind == "engine":
            self.runtime.load(self._spec)
        self.comparisons.judging.start(comparison_id, judge)
        self._follow(lambda: self._judging(comparison_id))
        progress = self.comparisons.judging.progress(comparison_id)
        if progress.state == "failed":
            raise WorkbenchError(f"The judge gave up after {progress.done:,} pairs: {progress.error}")
        if progress.failed:
            say(f"pairs without a verdict: {progress.failed:,}; the first: {progress.error}")

    def _generating(self, comparison_id: str) -> str:
        view = self.comparisons.view(comparison_id)
        if not view.is_live:
            return ""
        errors = f", {view.counts['error']:,} errors" if view.counts.get("error") else ""
        return f"{view.complete:,} of {view.spec.answers:,} answers{errors}"

    def _judging(self, comparison_id: str) -> str:
        progress = self.comparisons.judging.progress(comparison_id)
        if progress.state != "judging":
            return ""
        return f"{progress.done:,} of {progress.total:,} pairs judged"

    def _follow(self, line: Callable[[], str]) -> None:
        """Show how far it is until `line` has nothing more to say."""
        terminal = sys.stderr.isatty()
        every_s = _TERMINAL_EVERY_S if terminal else _LOG_EVERY_S
        shown, stage = time.monotonic(), ""
        while said := line():
            time.sleep(_POLL_S)
            status = self.runtime.status()
            if status.phase != "ready" and status.stage != stage:
                stage = status.stage
                say(f"engine: {stage}")
            elif status.phase == "ready" and time.monotonic() - shown >= every_s:
                shown = time.monotonic()
                print(f"{said}   ", end="\r" if terminal else "\n", file=sys.stderr, flush=True)

    def _stopped(self, comparison_id: str) -> None:
        self.comparisons.judging.stop(comparison_id)
        self.comparisons.stop(comparison_id)
        end = time.monotonic() + _STOP_PATIENCE_S
        while self.comparisons.view(comparison_id).is_live and time.monotonic() < end:
            time.sleep(_POLL_S)

    def _refuse_nothing(self, view: ComparisonView) -> None:
        """Raise the first cell's error when no answer came at all: there is nothing to write."""
        if view.complete:
            return
        errors = [cell.details.get("error") for cell in view.cells.values() if cell.details.get("error")]
        hint = f"Go on with: python -m core compare --resume {view.comparison_id} -o OUTPUT"
        raise WorkbenchError(f"No answer came. {errors[0] if errors else ''}".strip(), hint=hint)


def _say_scores(view: ComparisonView, scored: Scores) -> None:
    """The differences that are shown, and how many figures show none; the file has them all."""
    baseline = view.spec.sets[scored.baseline].name
    shown = {key: one for key, one in scored.differences.items() if one.verdict != NO_DIFFERENCE}
    for (place, name), found in shown.items():
        metric = METRICS[name]
        words = report.number(found.mean, metric, signed=True)
        interval = report.interval(found, metric, signed=True)
        who = f"{view.spec.sets[place].name} against {baseline}"
        say(f"{metric.title}: {who}: {words} (95% interval {interval}): {found.verdict}")
    if rest := len(scored.differences) - len(shown):
        say(f"no difference shown by {rest:,} figures of sets against {baseline}")
