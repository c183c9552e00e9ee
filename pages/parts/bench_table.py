"""Rows of a table as the prompts of a benchmark: one that was read before, a file, or the example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from core import openai_batch, prompts, tables
from core.bench.spec import MAX_PROMPTS, TableWorkload, Workload
from core.errors import WorkbenchError
from core.recipes import Recipe
from core.run_spec import PromptSpec
from core.store import RunRecord
from pages.parts import bench_files, session
from pages.parts.batch_setup import EXAMPLE, EXAMPLE_TEMPLATE
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_LISTED = 30
_ROWS = 20
_SOURCES = {"example": "The example: product reviews", "file": "A file of yours", "kept": "As it was"}


def table_form(key: str, given: Workload) -> TableWorkload | None:
    """Draw the choice of a table, the template and how many rows; None while it is not complete."""
    start = given if isinstance(given, TableWorkload) else None
    try:
        path = _choose(key, start)
        if path is None:
            return None
        found = _looked_at(str(path), path.stat().st_mtime_ns)
    except (WorkbenchError, OSError) as error:
        st.error(plain_text(str(error)))
        return None
    with st.expander(f"Look at the table ({counted(len(found.columns), 'column')})"):
        st.dataframe([_shown(row) for row in found.rows], hide_index=True, height=240)
    prompt = _own_prompts(found) or _prompt(f"{key}:{path.name}", found, path, start)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        rows = st.number_input(
            "Rows", 1, MAX_PROMPTS, start.num_prompts if start else 200, key=f"{key}:n", width=170,
            placeholder="all", persist_state="session",
            help="Drawn with the seed; at most as many as there are. Empty: all, in their order.",
        )  # fmt: skip
        output_len = st.number_input(
            "Tokens out", 1, None, start.output_len if start else None, key=f"{key}:out", width=170,
            placeholder="model's end", persist_state="session",
            help="The exact length of every answer. Empty: each ends where the model ends it.",
        )  # fmt: skip
    if prompt is None:
        return None
    return TableWorkload(path=str(path), prompt=prompt, num_prompts=rows, output_len=output_len)


def _choose(key: str, start: TableWorkload | None) -> Path | None:
    """The file of the table that was chosen. Raises WorkbenchError when it can't be had."""
    records = {record.run_id: record for record in session.store().runs(_LISTED, drafts=True)}
    sources = ["kept"] if start else []
    sources += ["example", "file", *records]
    chosen = st.selectbox(
        "Table", sources, 0, format_func=lambda name: _SOURCES.get(name) or _title(records[name]),
        key=f"{key}:source", persist_state="session",
        help="All tables that were read on the batch page are here too.",
    )  # fmt: skip
    if chosen == "kept":
        path = Path(start.path)
        if not bench_files.is_there(path):
            return None
        st.caption(f":material/description: {plain_text(bench_files.files().name_of(start.path))}")
        return path
    if chosen == "example":
        return EXAMPLE
    if chosen == "file":
        endings = [ending.lstrip(".") for ending in tables.FORMATS_IN]
        return bench_files.kept_file(
            f"{key}:file", "Your table", endings, None, "CSV, Excel, JSONL, Parquet."
        )
    return bench_files.files().keep_run(session.jobs().open(chosen))


def _title(record: RunRecord) -> str:
    return f"{record.name} · {counted(record.rows, 'row')} · {record.created_at.astimezone():%d %b, %H:%M}"


@st.cache_data(max_entries=8, show_spinner=False)
def _looked_at(path: str, modified_ns: int) -> tables.Preview:
    return tables.preview(Path(path), rows=_ROWS)


def _own_prompts(found: tables.Preview) -> PromptSpec | None:
    """Of a file whose lines say themselves what is asked."""
    if not openai_batch.is_batch(found.columns):
        return None
    st.caption("An OpenAI Batch file: each line says itself what is asked, with its own parameters.")
    return PromptSpec(mode="openai")


def _prompt(key: str, found: tables.Preview, path: Path, start: TableWorkload | None) -> PromptSpec | None:
    """The template over the columns; None while it can't be used, which is then said."""
    state = st.session_state
    if f"{key}:template" not in state:
        asked = start.prompt if start and start.path == str(path) else None
        state[f"{key}:template"] = asked.template if asked else _first_template(found, path)
        state[f"{key}:system"] = asked.system if asked else ""
    names = [column.name for column in found.columns]
    st.pills("Insert a column", names[:40], key=f"{key}:insert", on_change=_insert, args=(key,))
    template = st.text_area(
        "Template", state[f"{key}:template"], key=f"{key}:template", height=110, persist_state="session",
        help="The prompt of each row; {{ column }} stands for the row's own value.",
    )  # fmt: skip
    system = st.text_input(
        "System prompt", state[f"{key}:system"], key=f"{key}:system", placeholder="None",
        persist_state="session",
    )  # fmt: skip
    kept = start.prompt if start and start.path == str(path) else PromptSpec()
    prompt = kept.model_copy(update={"template": template, "system": system, "prompt_column": None})
    if beside := _beside(prompt):
        st.caption(plain_text(f"Also asked: {beside}."))
    try:
        recipe = Recipe(prompt, found.columns)
        if found.rows:
            ask = recipe.ask(found.rows[0])
            if ask is not None and ask.messages:
                st.caption(f"The first row: {plain_text(_short(ask.messages[-1].content))}")
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return None
    return prompt


def _beside(prompt: PromptSpec) -> str:
    """What the form has no fields for and keeps: parameters from columns, adapters."""
    found = [f"{name} from the column {column}" for name, column in prompt.param_columns.items()]
    if prompt.adapter_column is not None:
        found.append(f"adapters from the column {prompt.adapter_column}")
    if prompt.adapter is not None:
        found.append(f"adapter {prompt.adapter}")
    return ", ".join(found)


def _first_template(found: tables.Preview, path: Path) -> str:
    """What the example asks; of any other table the column with the longest texts."""
    if path == EXAMPLE:
        return EXAMPLE_TEMPLATE
    lengths = {
        column.name: sum(len(str(row[column.name] or "")) for row in found.rows) for column in found.columns
    }
    return prompts.column_reference(max(lengths, key=lengths.get))


def _insert(key: str) -> None:
    name = st.session_state[f"{key}:insert"]
    if name is not None:
        text = st.session_state[f"{key}:template"].rstrip()
        st.session_state[f"{key}:template"] = f"{text} {prompts.column_reference(name)}".lstrip()
        st.session_state[f"{key}:insert"] = None


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: _short("" if value is None else str(value)) for name, value in row.items()}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 240 else f"{line[:240]}…"
