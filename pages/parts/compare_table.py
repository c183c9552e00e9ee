"""Prompts that are rows of a table: one that was staged before, or a file; a few rows, drawn by chance."""

from __future__ import annotations

import shutil
from pathlib import Path

import streamlit as st

from core import prompts, tables
from core.comparing.rows import sample_rows
from core.comparing.spec import PromptItem
from core.errors import WorkbenchError
from core.jobs import Staging
from core.run_spec import PromptSpec
from core.runs import Run
from core.store import RunRecord, new_id
from pages.parts import session
from pages.parts.batch_setup import EXAMPLE, first_template
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_LISTED = 50
_MOST_ROWS = 100
_FIRST_ROWS = 8
_POLL_S = 0.3


def rows_form(key: str) -> tuple[PromptItem, ...]:
    """Draw the choice of a table, the template and how many rows; gives the rows as prompts."""
    staging: Staging | None = st.session_state.get(f"{key}:staging")
    if staging is not None:
        _show_staging(key)
        return ()
    run_id = _choose(key)
    if run_id is None:
        return ()
    try:
        return _rows(f"{key}:{run_id}", session.jobs().open(run_id))
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return ()


def table_of(key: str) -> str | None:
    """The run whose table the draft `key` takes its prompts from; None where they are from elsewhere."""
    return st.session_state.get(f"{key}:table") if st.session_state.get(f"{key}:source") == "table" else None


def name_of(key: str) -> str:
    """The name of that table, for the comparison; "" where there is none."""
    run_id = table_of(key)
    record = session.store().run(run_id) if run_id else None
    return record.name if record else ""


def _choose(key: str) -> str | None:
    """A table that is here, or a new one."""
    state = st.session_state
    records = session.store().runs(_LISTED, drafts=True)
    names = {one.run_id: _title(one) for one in records}
    kept = state.get(f"{key}:table")
    if kept not in names:  # deleted meanwhile
        kept = None
        state.pop(f"{key}:table", None)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Table", list(names), list(names).index(kept) if kept else None, format_func=names.get,
            key=f"{key}:table", placeholder="Choose a table", persist_state="session",
            help="All tables that were read on the batch page or here.",
        )  # fmt: skip
        with st.popover("Read a file", icon=":material/upload_file:"):
            uploaded = st.file_uploader(
                "A table", type=[ending.lstrip(".") for ending in tables.FORMATS_IN], key=f"{key}:upload"
            )
            if st.button("The example: product reviews", icon=":material/table:", key=f"{key}:example"):
                _stage(key, EXAMPLE, EXAMPLE.name)
    if uploaded is not None and state.get(f"{key}:uploaded") != uploaded.file_id:
        state[f"{key}:uploaded"] = uploaded.file_id
        path = session.runtime().settings.uploads_dir / f"{new_id()}{Path(uploaded.name).suffix.lower()}"
        with path.open("wb") as file:
            shutil.copyfileobj(uploaded, file)
        _stage(key, path, uploaded.name)
    problem = state.get(f"{key}:staging-error")
    if problem:
        st.error(plain_text(problem))
    return chosen


def _title(record: RunRecord) -> str:
    return f"{record.name} · {counted(record.rows, 'row')} · {record.created_at.astimezone():%d %b, %H:%M}"


def _stage(key: str, path: Path, name: str) -> None:
    st.session_state.pop(f"{key}:staging-error", None)
    st.session_state[f"{key}:staging"] = session.jobs().stage_later(path, name=name)
    st.rerun()


@st.fragment(run_every=_POLL_S)
def _show_staging(key: str) -> None:
    staging: Staging | None = st.session_state.get(f"{key}:staging")
    if staging is None:
        return
    st.progress(
        min(staging.share, 1.0), f"Reading {plain_text(staging.name)}: {counted(staging.rows, 'row')}"
    )
    if not staging.future.done():
        return
    del st.session_state[f"{key}:staging"]
    try:
        st.session_state[f"{key}:table"] = staging.future.result().run_id
    except WorkbenchError as error:
        st.session_state[f"{key}:staging-error"] = str(error)
    st.rerun()


def _rows(key: str, run: Run) -> tuple[PromptItem, ...]:
    """The template over the columns, and which rows."""
    columns = list(run.spec.input.columns)
    state = st.session_state
    if f"{key}:template" not in state:
        asked = run.spec.prompt
        state[f"{key}:template"] = asked.template if asked and asked.template else first_template(run)
    st.pills("Insert a column", columns[:40], key=f"{key}:insert", on_change=_insert, args=(key,))
    template = st.text_area(
        "Template", state[f"{key}:template"], key=f"{key}:template", height=110, persist_state="session",
        help="The prompt of each row; {{ column }} stands for the row's own value.",
    )  # fmt: skip
    there = max(1, run.spec.input.rows)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        count = st.number_input(
            "Rows", 1, min(_MOST_ROWS, there), min(_FIRST_ROWS, there), key=f"{key}:count", width=120,
            persist_state="session",
        )  # fmt: skip
        seed = st.number_input(
            "Drawn with seed", value=1, key=f"{key}:seed", width=150, persist_state="session",
            placeholder="First rows", help="The same seed draws the same rows. Empty: the first rows.",
        )  # fmt: skip
        evaluated = run.spec.evaluation.reference_column if run.spec.evaluation else None
        reference = st.selectbox(
            "Right answers", columns, columns.index(evaluated) if evaluated in columns else None,
            key=f"{key}:reference", placeholder="None", width=220, persist_state="session",
            help="The column with the right answers, where there is one: answers are scored against it.",
        )  # fmt: skip
        system = st.text_input(
            "System prompt", key=f"{key}:system", placeholder="None", persist_state="session", width=240
        )
    asked = (template, system, count, seed, reference)
    kept = state.get(f"{key}:rows")
    if kept is None or kept[0] != asked:  # not read again each time that a slider moves
        spec = PromptSpec(template=template, system=system)
        with run.connect() as connection:
            items = sample_rows(connection, spec, count, seed=seed, reference_column=reference)
        kept = state[f"{key}:rows"] = (asked, items)
    return kept[1]


def _insert(key: str) -> None:
    name = st.session_state[f"{key}:insert"]
    if name is not None:
        text = st.session_state[f"{key}:template"].rstrip()
        st.session_state[f"{key}:template"] = f"{text} {prompts.column_reference(name)}".lstrip()
        st.session_state[f"{key}:insert"] = None
