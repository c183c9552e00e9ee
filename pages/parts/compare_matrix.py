"""Answers as a matrix: a row for each prompt, a column for each set, what differs from the baseline marked.

A component of its own: Streamlit's elements can neither scroll a table sideways under fixed headings
nor mark single words of untrusted text, and would be made anew with each token. Its script writes text
through `textContent` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from core import reasoning, sampling
from core.answers import in_words
from core.comparing.cells import Cell, Place
from core.comparing.runner import ComparisonView
from core.comparing.spec import SetSpec, messages_of
from core.comparing.words import changed_words
from core.reasoning import Reasoned
from pages.parts.charts import duration, per_second, short_value

_HERE = Path(__file__).parent
_MOST_CHARACTERS = 6_000  # of one answer in the matrix; all of it stands in the side-by-side view
_EMPTY = {
    "waiting": "waiting", "missing": "not asked", "generating": "…", "complete": "(nothing)",
    "stopped": "stopped before the first token", "interrupted": "interrupted", "error": "",
}  # fmt: skip
_component = st.components.v2.component(
    "workbench_compare_matrix",
    html='<div class="matrix"></div>',
    css=(_HERE / "compare_matrix.css").read_text(encoding="utf-8"),
    js=(_HERE / "compare_matrix.js").read_text(encoding="utf-8"),
)


def matrix(
    key: str,
    view: ComparisonView,
    *,
    prompts: Sequence[int],
    samples: Sequence[int],
    baseline: int | None,
    on_open: Callable[[int, int], None],
) -> None:
    """Draw these rows and samples; `on_open(prompt, set)` is called for the cell that somebody opens.

    `baseline`: the set that differences are marked against; None: none are.
    """
    sets = range(len(view.spec.sets))
    rows = [
        [[_answer(view, Place(row, column, sample), baseline) for sample in samples] for column in sets]
        for row in prompts
    ]
    data = {
        "sets": [heading(view, column, baseline) for column in sets],
        "prompts": [_prompt(view, row) for row in prompts],
        "rows": rows,
        "live": view.is_live,
        "opens": True,
    }

    def opened() -> None:
        chosen = st.session_state[key]["opened"]
        on_open(prompts[int(chosen["row"])], int(chosen["set"]))

    _component(key=key, data=data, on_opened_change=opened)


def pair(key: str, view: ComparisonView, places: tuple[Place, Place], *, named: bool = True) -> None:
    """Two answers side by side, whole, each with the words marked that the other one does not have."""
    left, right = places
    data = {
        "sets": [heading(view, place.set, None) for place in places] if named else
                [{"name": name, "about": "", "full": "", "baseline": False} for name in ("Left", "Right")],
        "prompts": None,
        "rows": [[[_beside(view, left, right, named)], [_beside(view, right, left, named)]]],
        "live": view.cells[left].live is not None or view.cells[right].live is not None,
        "opens": False,
    }  # fmt: skip
    _component(key=key, data=data, on_opened_change=lambda: None)


def heading(view: ComparisonView, column: int, baseline: int | None) -> dict[str, Any]:
    """A column's name, and below it what its name does not say."""
    one = view.spec.sets[column]
    words = set_words(one)
    about = " · ".join(word for word in words if word not in one.name)
    return {"name": one.name, "about": about, "full": " · ".join(words), "baseline": column == baseline}


def set_words(one: SetSpec) -> list[str]:
    """What the set says, where it differs from the usual: ["temperature 0.7", "max_tokens 64"]."""
    words = [
        f"{name} {short_value(value)}"
        for name, value in one.params.items()
        if name in ("temperature", "max_tokens") or value != sampling.BY_NAME[name].default
    ]
    words += [one.style] if one.style != "chat" else []
    words += [] if one.adapter is None else [f"adapter {one.adapter}"]
    words += [] if one.system is None else ["own system prompt" if one.system.strip() else "no system prompt"]
    return words + ([] if one.template is None else ["own template"])


def _prompt(view: ComparisonView, row: int) -> dict[str, str]:
    item = view.spec.prompts[row]
    turns = len([message for message in item.messages if message.role == "user"])
    label = item.label or f"Prompt {row + 1}"
    if turns > 1:
        label += f" · turn {turns}"
    return {"label": label, "text": item.text, "reference": item.reference or ""}


def asked(view: ComparisonView, place: Place) -> list[tuple[str, str]]:
    """(role, text) of what the model was asked in this cell."""
    messages = messages_of(view.spec.prompts[place.prompt], view.spec.sets[place.set])
    return [(message.role, message.content) for message in messages]


def parted(cell: Cell) -> Reasoned:
    """The thoughts and the answer: it is answers that are compared."""
    text = cell.live.text if cell.live else cell.text
    inside = cell.live.begins_inside if cell.live else bool(cell.details.get("begins_inside"))
    return reasoning.split(text, begins_inside=inside)


def _answer(view: ComparisonView, place: Place, baseline: int | None) -> dict[str, Any]:
    """A cell for the component."""
    cell, said = view.cells[place], parted(view.cells[place])
    text = said.answer[:_MOST_CHARACTERS]
    parts: Sequence[tuple[bool, str]] = ((False, text),) if text else ()
    if baseline is not None and place.set != baseline and not cell.live:
        other = view.cells[place._replace(set=baseline)]
        # a baseline that is still growing would mark everything that it has not reached
        if other.state == "complete":
            parts = changed_words(text, parted(other).answer[:_MOST_CHARACTERS])
    cut = [("cut", "open it to read on")] if len(said.answer) > _MOST_CHARACTERS else []
    return _drawn(cell, said, parts, [*note(cell, said), *cut])


def _beside(view: ComparisonView, place: Place, other: Place, named: bool) -> dict[str, Any]:
    cell, against = view.cells[place], view.cells[other]
    said = parted(cell)
    parts: Sequence[tuple[bool, str]] = ((False, said.answer),) if said.answer else ()
    if named and not cell.live and not against.live and place != other:
        parts = changed_words(said.answer, parted(against).answer)
    return _drawn(cell, said, parts, note(cell, said) if named else [])


def _drawn(
    cell: Cell, said: Reasoned, parts: Sequence[tuple[bool, str]], words: Sequence[Sequence[str]]
) -> dict[str, Any]:
    return {
        "parts": [[int(changed), text] for changed, text in parts],
        "note": [list(word) for word in words],
        "state": cell.state,
        "live": cell.live is not None,
        "empty": "thinking…" if cell.live and said.is_open else _EMPTY[cell.state],
    }


def note(cell: Cell, said: Reasoned) -> list[tuple[str, str]]:
    """(kind, words) below an answer: its figures, and why it ended if not by itself."""
    if cell.live:
        return [("", f"{cell.live.output_tokens:,} tokens")] if cell.live.output_tokens else []
    details = cell.details
    if cell.state == "error":
        return [("bad", details.get("error") or "The answer failed.")]
    words = [("", f"{details['output_tokens']:,} tokens")] if details.get("output_tokens") else []
    if details.get("ttft_s") is not None:
        words.append(("", f"TTFT {duration(details['ttft_s'])}"))
    if details.get("output_tokens_per_s") is not None:
        words.append(("", f"{per_second(details['output_tokens_per_s'])} tokens/s"))
    if said.is_open:
        words.append(("cut", "did not finish thinking"))
    elif said.reasoning:
        words.append(("", "after thinking"))
    ended = in_words(cell.state, details)
    return [*words, ("cut", ended)] if ended and cell.text else words
