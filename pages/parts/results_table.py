"""The rows of a run with their answers: filter, search, page through them, look at one in full."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from core import browse, structured, tables
from core.batch import Progress
from core.browse import STATUSES, BrowsedRow, Filter, Found
from core.errors import RunBusy
from core.runs import Run
from pages.parts.charts import counted
from pages.parts.markdown import plain_text
from pages.parts.result_row import draw_row

_PAGE_ROWS = 100
_CELL_CHARACTERS = 500
_PARSED_CHARACTERS = 20_000  # of an answer whose properties are shown: half a JSON object has none
_TABLE_PIXELS = 420  # always the same, so that nothing below it moves
_STATUS_NAMES = {"ok": "Ok", "error": "Errors", "skipped": "Skipped", "none": "No answer yet"}
_ORDER_NAMES = {
    "file": "File order",
    "longest": "Longest first",
    "shortest": "Shortest first",
}
_VALID_NAMES = {True: "Valid", False: "Not valid"}
_SHARED_NAMES = {True: "Shared by several rows", False: "A row's own"}


@st.cache_resource(max_entries=4, show_spinner=False)
def _found(run_id: str, stamp: tuple[Any, ...], filter: Filter, _run: Run) -> Found:
    """Searched once for all pages and all browser sessions; 8 bytes a row, so only a few are kept."""
    with _run.connect() as connection:
        return browse.find(connection, tables.info(connection).columns, filter)


@st.cache_resource(max_entries=8, show_spinner=False)
def _overview(run_id: str, stamp: tuple[Any, ...], _run: Run) -> tuple[dict[str, int], dict[str, int]]:
    """Rows by status and by finish reason."""
    with _run.connect() as connection:
        return browse.counts(connection), dict(browse.finish_reasons(connection))


@st.fragment
def draw(run: Run, progress: Progress) -> None:
    """Filter bar, one page of the table, and the row that is selected in it. The run is at rest."""
    try:
        with run.connect() as connection:
            stamp = browse.stamp(connection)
        counts, reasons = _overview(run.run_id, stamp, run)
        filter = _filter_bar(run, counts, reasons)
        found = _found(run.run_id, stamp, filter, run)
        _table(run, found, progress.rows, filter)
    except RunBusy as error:
        st.info(plain_text(str(error)))


def _key(run: Run, name: str) -> str:
    return f"results:{run.run_id}:{name}"


# -- the filter bar -------------------------------------------------------------


def _filter_bar(run: Run, counts: Mapping[str, int], reasons: Mapping[str, int]) -> Filter:
    """What is to be shown."""
    statuses = st.pills(
        "Rows",
        STATUSES,
        selection_mode="multi",
        format_func=lambda status: f"{_STATUS_NAMES[status]} {counts[status]:,}",
        key=_key(run, "statuses"),
        label_visibility="collapsed",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Search",
            key=_key(run, "text"),
            type="search",
            placeholder="Search answers, errors and all columns",
            icon=":material/search:",
            label_visibility="collapsed",
        )
        order = st.selectbox(
            "Order", list(_ORDER_NAMES), format_func=_ORDER_NAMES.get, key=_key(run, "order"), width=160,
            label_visibility="collapsed",
        )  # fmt: skip
        with st.popover("Filter", icon=":material/filter_alt:"):
            reason = _choice(
                run, "Finish reason", {reason: f"{reason} {rows:,}" for reason, rows in reasons.items()}
            )
            valid = None
            if run.spec.params.get("structured_outputs"):
                valid = _choice(run, "Structure of the answer", _VALID_NAMES)
            shared = _choice(run, "Answer", _SHARED_NAMES)
    return Filter(
        statuses=frozenset(statuses),
        finish_reason=reason,
        text=(text or "").strip(),
        valid=valid,
        shared=shared,
        order=order,
    )


def _choice(run: Run, label: str, names: Mapping[Any, str]) -> Any:
    return st.pills(label, list(names), format_func=names.get, key=_key(run, label))


# -- the table --------------------------------------------------------------------


def _table(run: Run, found: Found, rows: int, filter: Filter) -> None:
    pages = max(1, -(-found.total // _PAGE_ROWS))
    said, table, below, chosen = st.container(), st.container(), st.container(), st.empty()
    with below:  # the table's own tools come up above it
        page = _page_number(run, pages, f"{pages}:{hash(filter)}")
    offset = (page - 1) * _PAGE_ROWS
    hint = " · click a row to see all of it" if found.total else ""
    said.caption(_in_words(found.total, rows, offset, filter) + hint)
    if not found.total:
        with table.container(height=_TABLE_PIXELS, border=True, vertical_alignment="center"):
            st.caption("No row matches. Take a filter away or search for something else.")
        return
    with run.connect() as connection:
        columns = tables.info(connection).columns
        characters = _PARSED_CHARACTERS if _properties(run) else _CELL_CHARACTERS
        shown = browse.rows(connection, columns, found.part(_PAGE_ROWS, offset), characters)
    frame = _frame(run, shown)
    # a key for what is shown: the selection belongs to these rows, not to their place on the page
    event = table.dataframe(
        frame,
        height=_TABLE_PIXELS,
        key=_key(run, f"table:{page}:{hash(filter)}"),
        column_config=_column_config(run),
        placeholder="",
        on_select="rerun",
        selection_mode="single-cell",
        alt="Rows of the run with their answers",
    )
    # a cell rather than a row: one click anywhere, and the arrow keys go on from there
    cells = event.selection.get("cells", [])
    if not cells or cells[0][0] >= len(shown):
        return
    with run.connect() as connection:
        (whole,) = browse.rows(connection, columns, [shown[cells[0][0]].row])
    # in a place of its own, emptied above: what a fragment no longer draws, browsers may keep
    with chosen.container():
        draw_row(whole, key=_key(run, "row"))


def _page_number(run: Run, pages: int, shown: str) -> int:
    """The page, 1-based. Whenever what is `shown` changes, it is a new widget, and the first page."""
    jump_key, target_key = _key(run, "jump"), _key(run, f"target:{shown}")
    target = st.session_state.get(target_key, 1)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="right"):
        page = st.pagination(
            pages, default=target, key=_key(run, f"page:{shown}:{target}"), max_visible_pages=5
        )
        if pages > 9:  # the arrows go one by one

            def jump() -> None:
                st.session_state[target_key] = st.session_state[jump_key] or 1
                st.session_state[jump_key] = None

            st.number_input(
                "Go to page", 1, pages, None, key=jump_key, on_change=jump, placeholder="Page",
                width=120, label_visibility="collapsed",
            )  # fmt: skip
    return page


def _in_words(found: int, rows: int, offset: int, filter: Filter) -> str:
    if not found:
        return f"None of {counted(rows, 'row')}"
    part = f"{offset + 1:,} to {min(offset + _PAGE_ROWS, found):,}"
    if replace(filter, order="file") == Filter():
        return counted(rows, "row") if found <= _PAGE_ROWS else f"Rows {part} of {rows:,}"
    of_all = f"{found:,} of {counted(rows, 'row')}"
    return of_all if found <= _PAGE_ROWS else f"{of_all} · {part} of these"


def _properties(run: Run) -> tuple[tuple[str, str], ...]:
    asked = run.spec.params.get("structured_outputs")
    return structured.columns(asked) if asked else ()


def _frame(run: Run, shown: list[BrowsedRow]) -> pd.DataFrame:
    """The answer first, then how it ended, then the file's columns; rows are numbered from 1."""
    base = run.spec.answer_column
    names = [name for name, _type in _properties(run)]
    lines = []
    for row in shown:
        line = {base: row.answer}
        properties = browse.answer_values(row.answer, names) if names else {}
        line |= {f"{base}_{name}": value for name, value in properties.items()}
        line[f"{base}_status"] = None if row.status == "none" else row.status
        line[f"{base}_error"] = row.error
        line |= row.values
        line[f"{base}_finish_reason"] = row.finish_reason
        lines.append({name: _text(value) for name, value in line.items()})
    frame = pd.DataFrame(lines, index=pd.RangeIndex(0, len(shown)))
    if not any(row.error for row in shown):
        frame = frame.drop(columns=f"{base}_error")
    for name in ("prompt_tokens", "output_tokens"):  # a row without an answer has no number there
        frame[f"{base}_{name}"] = pd.array([getattr(row, name) for row in shown], dtype="Int64")
    frame.index = pd.Index([row.row + 1 for row in shown], name="Row")
    return frame


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return str(value)[:_CELL_CHARACTERS]


def _column_config(run: Run) -> dict[str, Any]:
    base = run.spec.answer_column
    config: dict[str, Any] = {"Row": st.column_config.NumberColumn(width=70, format="localized", pinned=True)}
    # where its properties have columns of their own, the answer need not be wide
    config[base] = st.column_config.TextColumn(width="medium" if _properties(run) else "large")
    return config
