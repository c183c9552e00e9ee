"""One row of a run in full: what was in it, what the model said, what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core.browse import BrowsedRow
from pages.parts.charts import counted, duration
from pages.parts.markdown import plain_text

_STATUS_NAMES = {
    "ok": "Ok",
    "error": "Error",
    "skipped": "Skipped: the prompt is empty",
    "none": "No answer yet",
}
_SHORT = 80
_LONG = 3_000
_LONG_PIXELS = 480
_MOST_COLUMNS = 100


def draw_row(row: BrowsedRow, *, key: str) -> None:
    """Everything there is about `row`, in a box. `key` tells its widgets from others'."""
    with st.container(border=True, key=key):
        st.markdown(f"**Row {row.row + 1:,}** · {_STATUS_NAMES[row.status]}")
        st.caption(plain_text(" · ".join(_facts(row))))
        for note in _notes(row):
            st.caption(f":material/info: {note}")
        if row.error:
            st.error(plain_text(row.error), icon=":material/error:")
        given, answered = st.columns(2, gap="medium")
        with given:
            _given(row)
        with answered:
            _answered(row)


def _facts(row: BrowsedRow) -> list[str]:
    """What it took, as far as it was measured."""
    facts = [f"line {row.line:,} of the file"]
    if row.finish_reason:
        facts.append(f"finish reason {row.finish_reason}")
    if row.prompt_tokens is not None:
        cached = f" ({row.cached_tokens:,} from the cache)" if row.cached_tokens else ""
        facts.append(f"{counted(row.prompt_tokens, 'prompt token')}{cached}")
    if row.output_tokens is not None:
        facts.append(counted(row.output_tokens, "output token"))
    if row.ttft_s is not None:
        facts.append(f"first token after {duration(row.ttft_s)}")
    if row.e2el_s is not None:
        facts.append(f"answer after {duration(row.e2el_s)}")
    if row.logprob is not None:
        mean = f", {row.logprob / row.output_tokens:.3f} a token" if row.output_tokens else ""
        facts.append(f"log-probability {row.logprob:.2f}{mean}")
    return facts


def _notes(row: BrowsedRow) -> list[str]:
    notes = []
    if row.same_as is not None:
        notes.append(f"Row {row.same_as + 1:,} asks the same: the answer was generated once, for both.")
    if row.truncated_tokens:
        notes.append(f"The prompt was cut by {counted(row.truncated_tokens, 'token')} to fit the context.")
    if row.valid is False:
        notes.append("The answer does not have the structure that was asked for.")
    if row.finish_reason == "length":
        notes.append("The answer reached the most tokens it may have, and breaks off there.")
    return notes


def _given(row: BrowsedRow) -> None:
    st.caption("In the file")
    if row.problem:
        st.warning(plain_text(row.problem))
    values = {name: _text(value) for name, value in row.values.items()}
    shown = dict(list(values.items())[:_MOST_COLUMNS])
    short = {name: text for name, text in shown.items() if len(text) <= _SHORT and "\n" not in text}
    if short:
        names = [f"**{plain_text(name)}**" for name in short]
        st.table(pd.DataFrame({"Value": map(plain_text, short.values())}, index=names), hide_header=True)
    for name, text in shown.items():
        if name not in short:
            st.markdown(f":small[**{plain_text(name)}**]")
            _long_text(text)
    if len(values) > len(shown):
        st.caption(f"and {counted(len(values) - len(shown), 'column')} more")


def _answered(row: BrowsedRow) -> None:
    st.caption("Answer")
    if row.answer is None:
        st.caption("–")
    elif row.samples:
        for number, sample in enumerate(row.samples, 1):
            st.caption(_sample_facts(number, sample))
            _answer(sample["text"])
    elif row.turns:
        for number, text in enumerate(row.turns, 1):
            st.caption(f"To turn {number}")
            _answer(text)
    else:
        _answer(row.answer)
    if row.choice_probabilities:
        st.caption("Probability of each choice")
        ranked = sorted(row.choice_probabilities.items(), key=lambda item: -item[1])
        st.dataframe(
            pd.DataFrame(ranked, columns=["Choice", "Probability"]),
            hide_index=True,
            column_config={
                "Probability": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)
            },
        )


def _sample_facts(number: int, sample: Mapping[str, Any]) -> str:
    facts = [f"Answer {number}", sample["finish_reason"], counted(sample["output_tokens"], "token")]
    if sample.get("logprob") is not None:
        facts.append(f"log-probability {sample['logprob']:.2f}")
    return plain_text(" · ".join(facts))


def _answer(text: str) -> None:
    """As it came; JSON so that it can be read, and as it came beside it."""
    try:
        value = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict | list):
        st.json(value, expanded=2)
        with st.expander("As it came"):
            _long_text(text)
    else:
        _long_text(text)


def _refused(constant: str) -> None:
    """NaN and Infinity: Python's reader takes them, JSON and the browser do not."""
    raise ValueError(constant)


def _long_text(text: str) -> None:
    """Letter by letter; what would fill the page scrolls in a box."""
    if len(text) > _LONG:
        with st.container(height=_LONG_PIXELS, border=True):
            st.text(text)
    else:
        st.text(text or "–")


def _text(value: Any) -> str:
    if value is None:
        return ""
    return (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
    )
