"""A comparison as a file: CSV with a line for each answer, or one HTML page that opens anywhere."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

import core
from core.answers import in_words
from core.comparing.cell import Cell, Place, Vote
from core.comparing.runner import ComparisonView
from core.comparing.scores import METRICS, Difference, Metric, Scores, SetScore, cell_scores, score
from core.comparing.spec import ComparisonSpec, messages_of
from core.comparing.votes import win_rates
from core.comparing.words import changed_words
from core.tables.writers import escape_cell

_TEMPLATE = Path(__file__).with_name("report.html")
_FIGURES = tuple(name for name in METRICS if name not in ("self_similarity", "output_tokens"))
_COLUMNS = (
    "prompt", "label", "set", "sample", "seed", "state", "answer", "finish_reason", "prompt_tokens",
    "output_tokens", *_FIGURES, "reference", "question", "system", "model", "params", "error",
)  # fmt: skip


def to_spec_json(view: ComparisonView) -> str:
    """The specification alone, by which the comparison can be repeated."""
    return json.dumps(view.spec.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False, indent=2)


def to_json(view: ComparisonView, votes: Sequence[Vote] = ()) -> str:
    """Everything as data: specification, answers with their figures, differences, votes.

    `python -m core compare` takes it as a specification, too.
    """
    scored = score(view.spec, view.cells)
    answers = [_line(view.spec, place, view.cells[place], scored) for place in sorted(view.cells)]
    content = {
        "name": view.name,
        "spec": view.spec.model_dump(mode="json", exclude_defaults=True),
        "answers": [
            {name: value for name, value in line.items() if value not in (None, "")} for line in answers
        ],
        "differences": differences(view, scored),
        "votes": [
            {
                "voter": vote.voter,
                "prompt": vote.prompt + 1,
                "sample": vote.sample + 1,
                "a": view.spec.sets[vote.set_a].name,
                "b": view.spec.sets[vote.set_b].name,
                "winner": vote.winner,
            }
            for vote in votes
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=2)


def differences(view: ComparisonView, scored: Scores) -> list[dict[str, Any]]:
    """Each set's differences to the baseline, as data."""
    return [
        {"set": view.spec.sets[place].name, "metric": name, **asdict(found)}
        for (place, name), found in scored.differences.items()
    ]


def to_csv(view: ComparisonView, *, escape_formulas: bool = True) -> str:
    """A header and a line for each cell, a prompt's sets together. Places count from 1.

    With `escape_formulas`, texts that a spreadsheet would run stand behind an apostrophe.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    scored = score(view.spec, view.cells)
    names = [name for name in _COLUMNS if name not in METRICS or name in (*scored.metrics, "output_tokens")]
    writer.writerow(names)
    for place in sorted(view.cells):
        line = _line(view.spec, place, view.cells[place], scored)
        cells = [line.get(name) for name in names]
        writer.writerow(
            [escape_cell(cell) if escape_formulas and isinstance(cell, str) else cell for cell in cells]
        )
    return file.getvalue()


def _line(spec: ComparisonSpec, place: Place, cell: Cell, scored: Scores) -> dict[str, Any]:
    item, one = spec.prompts[place.prompt], spec.sets[place.set]
    messages = messages_of(item, one)
    figures = {}
    if cell.state == "complete":
        figures = cell_scores(cell, one.params, item.reference, scored.reference_type or "text")
    details = cell.details
    return {
        **figures,
        "prompt": place.prompt + 1,
        "label": item.label,
        "set": one.name,
        "sample": place.sample + 1,
        "seed": spec.seeds[place.sample],
        "state": cell.state,
        "answer": cell.text,
        "finish_reason": details.get("finish_reason"),
        "prompt_tokens": details.get("prompt_tokens"),
        "output_tokens": details.get("output_tokens"),
        "reference": item.reference,
        "question": messages[-1].content,
        "system": "\n\n".join(message.content for message in messages if message.role == "system"),
        "model": details.get("model"),
        "params": json.dumps(details.get("params") or one.params, ensure_ascii=False),
        "error": details.get("error"),
    }


def to_html(view: ComparisonView, votes: Sequence[Vote] = ()) -> str:
    """One page with everything in it, for any browser, light or dark; it loads nothing and runs nothing."""
    scored = score(view.spec, view.cells)
    models = {cell.details.get("model") for cell in view.cells.values()} - {None, ""}
    return _template().render(
        view=view,
        spec=view.spec,
        scored=scored,
        metrics=[METRICS[name] for name in scored.metrics],
        models=", ".join(sorted(models)),
        rates=win_rates(votes),
        voters=list(dict.fromkeys(vote.voter for vote in votes)),
        spec_json=to_spec_json(view),
        version=core.__version__,
        place=Place,
        parts=functools.partial(_parts, view, scored.baseline),
        caption=_caption,
        number=number,
        interval=interval,
        plot=functools.partial(_plot, scored),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _parts(view: ComparisonView, baseline: int, place: Place) -> Sequence[tuple[bool, str]]:
    """The cell's text, with the words marked that the baseline's answer doesn't have."""
    text = view.cells[place].text
    other = view.cells[place._replace(set=baseline)]
    if place.set == baseline or not other.text:
        return ((False, text),)
    return changed_words(text, other.text)


def _caption(cell: Cell, seed: int | None) -> str:
    """Such as "seed 1, 24 tokens, cut at max_tokens"."""
    tokens, error = cell.details.get("output_tokens"), cell.details.get("error")
    ending = in_words(cell.state, cell.details) or ("" if cell.state == "complete" else cell.state)
    said = [
        "" if seed is None else f"seed {seed}",
        "" if tokens is None else f"{tokens:,} tokens",
        f"{ending}: {error}" if error else ending,
    ]
    return ", ".join(part for part in said if part)


def number(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    """A figure to three digits in its unit: 12 tokens, 0.53, +0.12 s."""
    if value is None:
        return "–"
    sign = "+" if signed and value else ""
    form = ",.0f" if abs(value) >= 100 else ".3g" if abs(value) >= 0.001 or not value else ".4f"
    text = f"{value:{sign}{form}}"
    unit = metric.unit if metric.unit not in ("", "share") else ""
    return f"{text} {unit}".strip().replace("-", "−")


def interval(found: SetScore | Difference, metric: Metric, *, signed: bool = False) -> str:
    if found.low is None or found.high is None:
        return f"n={found.n}"
    bounds = " to ".join(
        number(bound, metric, signed=signed).removesuffix(metric.unit).strip()
        for bound in (found.low, found.high)
    )
    return f"{bounds}, n={found.n}"


def _plot(scored: Scores, metric: str, found: Difference) -> dict[str, float]:
    """Where a difference and its interval lie on a line of 100, zero in the middle of all of this metric."""
    alike = [other for (_, name), other in scored.differences.items() if name == metric]
    bounds = [abs(bound) for one in alike for bound in (one.low, one.high, one.mean) if bound is not None]
    scale = 48 / (max(bounds) or 1)
    low, high = (found.mean if bound is None else bound for bound in (found.low, found.high))
    return {name: 50 + value * scale for name, value in (("low", low), ("mean", found.mean), ("high", high))}
