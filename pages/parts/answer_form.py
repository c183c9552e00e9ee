"""What answers shall be like, what is kept of them, rows with their own parameters, long prompts, speed."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core import tables
from core.run_spec import EvaluationSpec, Instructions, OutputSpec, OverflowSpec, PlanSpec
from core.runs import Run
from core.sampling import PARAMETERS
from pages.parts import session
from pages.parts.adapter_picker import adapter_names, adapter_picker
from pages.parts.markdown import plain_text
from pages.parts.structured_form import structured_form

_OVERFLOWS = {
    "error": "Mark the row as an error",
    "left": "Cut the beginning of the text",
    "right": "Cut the end of the text",
}
_SAMPLES = {"columns": "Columns", "rows": "Rows"}
_ANSWER_PARAMETERS = ("n", "logprobs", "structured_outputs")
_BY_ROW = [parameter.name for parameter in PARAMETERS if parameter.name not in _ANSWER_PARAMETERS]


def answer_form(
    run: Run, info: tables.TableInfo, initial: Instructions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw the form; gives fields of `Instructions`, and sampling parameters."""
    key = f"answers-{run.run_id}"
    names = [column.name for column in info.columns]
    _seed(key, initial)
    asked: dict[str, Any] = {}
    params: dict[str, Any] = {}
    asked |= _adapters(key, names, initial)
    structure = initial.params.get("structured_outputs")
    with st.expander("Shape of the answers", expanded=st.session_state[f"{key}:shaped"]):
        asked["answer_column"] = st.text_input(
            "Answer column",
            key=f"{key}:column",
            value=st.session_state[f"{key}:column"],
            help="Name of the new column; the status, error and token columns start with it.",
            persist_state="session",
        ).strip()
        shape = structured_form(
            f"{key}:shape",
            structure,
            answer_column=asked["answer_column"],
            why_not=_why_not("structured_outputs"),
        )
        if shape is not None:
            params["structured_outputs"] = shape
        chances = False
        if shape and "choice" in shape:
            unable = _why_not("score")
            chances = st.checkbox(
                "A column with the probability of each choice",
                key=f"{key}:chances",
                value=st.session_state[f"{key}:chances"],
                disabled=unable is not None and not st.session_state[f"{key}:chances"],
                help=unable or "How likely the model finds each choice, out of all of them.",
                persist_state="session",
            )
    with st.expander("Several answers, log-probabilities, evaluation"):
        n, samples = _several(key)
        if n > 1:
            params["n"] = n
        unable = _why_not("logprobs")
        logprobs = st.checkbox(
            "Columns with the log-probability of the answer, whole and mean per token",
            key=f"{key}:logprobs",
            value=st.session_state[f"{key}:logprobs"],
            disabled=unable is not None and not st.session_state[f"{key}:logprobs"],
            help=unable,
            persist_state="session",
        )
        if logprobs:
            params["logprobs"] = 0
        asked["evaluation"] = _evaluation(key, names)
    with st.expander("Parameters from columns, long prompts, speed"):
        asked["param_columns"] = _param_columns(key, names)
        asked["overflow"] = _overflow(key)
        asked["plan"] = _plan(key)
    asked["output"] = OutputSpec(samples=samples, logprobs=logprobs, choice_probabilities=chances)
    return asked, params


def _why_not(name: str) -> str | None:
    """Why the loaded engine can't do this feature or parameter; None: it can, or none is loaded.

    What was asked for already can always be taken back: only what is off is greyed out.
    """
    info = session.runtime().status().info
    if info is None:
        return None
    reason = info.cannot_params.get(name) or info.cannot.get(name)
    return None if reason is None else plain_text(reason)


def _seed(key: str, initial: Instructions) -> None:
    state = st.session_state
    if f"{key}:column" in state:
        return
    state[f"{key}:column"] = initial.answer_column
    state[f"{key}:shaped"] = "structured_outputs" in initial.params  # once: it would close under one's hands
    state[f"{key}:chances"] = initial.output.choice_probabilities
    state[f"{key}:n"] = initial.params.get("n", 1)
    state[f"{key}:samples"] = initial.output.samples
    state[f"{key}:logprobs"] = initial.output.logprobs
    evaluation = initial.evaluation
    state[f"{key}:reference"] = evaluation.reference_column if evaluation else None
    state[f"{key}:tolerance"] = evaluation.tolerance if evaluation else 1e-6
    state[f"{key}:params"] = list(initial.param_columns)
    for name, column in initial.param_columns.items():
        state[f"{key}:param-{name}"] = column
    state[f"{key}:overflow"] = initial.overflow.action
    state[f"{key}:prompt-tokens"] = initial.overflow.prompt_tokens
    state[f"{key}:reorder"] = initial.plan.reorder
    state[f"{key}:dedupe"] = initial.plan.dedupe


def _adapters(key: str, names: list[str], initial: Instructions) -> dict[str, Any]:
    """Which LoRA adapter answers, where there is one: for all rows, or by a column."""
    if not adapter_names() and initial.adapter is None and initial.adapter_column is None:
        return {}
    left, right = st.columns(2)
    with left:
        adapter = adapter_picker(f"{key}:adapter", initial.adapter)
    name = f"{key}:adapter-column"
    now = st.session_state.get(name, initial.adapter_column if initial.adapter_column in names else None)
    column = right.selectbox(
        "Column with each row's adapter",
        names,
        index=None if now is None else names.index(now),
        key=name,
        placeholder="None",
        help="Where its cell is empty, the adapter beside this answers; base stands for the model itself.",
        persist_state="session",
    )
    return {"adapter": adapter, "adapter_column": column}


def _several(key: str) -> tuple[int, Any]:
    left, right = st.columns(2, vertical_alignment="bottom")
    unable = _why_not("n")
    n = left.number_input(
        "Answers per row",
        1,
        64,
        key=f"{key}:n",
        value=st.session_state[f"{key}:n"],
        disabled=unable is not None and st.session_state[f"{key}:n"] == 1,
        help=unable or "`n`: more than one needs a temperature above 0.",
        persist_state="session",
    )
    samples = right.segmented_control(
        "Written as",
        list(_SAMPLES),
        format_func=_SAMPLES.get,
        key=f"{key}:samples",
        default=st.session_state[f"{key}:samples"],
        required=True,
        disabled=n == 1,
        persist_state="session",
    )
    return n, samples


def _evaluation(key: str, names: list[str]) -> EvaluationSpec | None:
    left, right = st.columns(2, vertical_alignment="bottom")
    reference = left.selectbox(
        "Column with the right answers",
        names,
        index=None,
        key=f"{key}:reference",
        placeholder="None",
        help="The answers are held against it: exact match, F1, ROUGE-L, a confusion matrix for labels.",
        persist_state="session",
    )
    tolerance = right.number_input(
        "Tolerance for numbers",
        min_value=0.0,
        format="%g",
        key=f"{key}:tolerance",
        value=st.session_state[f"{key}:tolerance"],
        disabled=reference is None,
        persist_state="session",
    )
    if reference is None:
        return None
    return EvaluationSpec(reference_column=reference, tolerance=tolerance)


def _param_columns(key: str, names: list[str]) -> dict[str, str]:
    chosen = st.multiselect(
        "Parameters that a column gives",
        _BY_ROW,
        key=f"{key}:params",
        placeholder="None",
        help="A temperature for each row, say. Where the cell is empty, the value of the run counts.",
        persist_state="session",
    )
    columns = {}
    for name in chosen:
        columns[name] = st.selectbox(
            f"Column for {name}", names, key=f"{key}:param-{name}", persist_state="session"
        )
    return columns


def _overflow(key: str) -> OverflowSpec:
    left, right = st.columns(2, vertical_alignment="bottom")
    why_not = _why_not("tokens")
    cuts = st.session_state[f"{key}:overflow"] != "error"
    action = left.selectbox(
        "A prompt that is too long",
        list(_OVERFLOWS),
        format_func=_OVERFLOWS.get,
        key=f"{key}:overflow",
        index=list(_OVERFLOWS).index(st.session_state[f"{key}:overflow"]),
        disabled=why_not is not None and not cuts,
        help="What is cut is the last user message; how much is kept with the row.",
        persist_state="session",
    )
    limited = st.session_state[f"{key}:prompt-tokens"] is not None
    tokens = right.number_input(
        "Most tokens in a prompt",
        min_value=1,
        key=f"{key}:prompt-tokens",
        value=st.session_state[f"{key}:prompt-tokens"],
        placeholder="as many as fit",
        disabled=why_not is not None and not limited,
        persist_state="session",
    )
    if why_not:
        st.caption(f"Prompts can't be cut or limited: {why_not}")
    return OverflowSpec(action=action, prompt_tokens=tokens)


def _plan(key: str) -> PlanSpec:
    reorder = st.checkbox(
        "Run rows in the order that shares prefixes",
        key=f"{key}:reorder",
        value=st.session_state[f"{key}:reorder"],
        help="Equal beginnings of prompts are computed once. The output keeps the file's order.",
        persist_state="session",
    )
    dedupe = st.checkbox(
        "Ask equal requests once",
        key=f"{key}:dedupe",
        value=st.session_state[f"{key}:dedupe"],
        help="Only where the answer can't differ: temperature 0, or a seed.",
        persist_state="session",
    )
    return PlanSpec(reorder=reorder, dedupe=dedupe)
