"""What a staged table looks like, and what its first prompts will be."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import tables
from core.asks import Ask
from core.engines.base import Engine
from core.errors import EngineNotReady, WorkbenchError
from core.requests import encode_chats
from core.runs import Run
from pages.parts import session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_ROWS = 50
_RENDERED = 3


def draw(run: Run, info: tables.TableInfo) -> None:
    """Rows, columns with their types, notes and problems."""
    facts = [counted(info.rows, "row"), counted(len(info.columns), "column"), info.format.upper()]
    facts += [info.encoding] if info.encoding else []
    facts += [f"sheet {info.sheet}"] if info.sheet else []
    st.caption(plain_text(" · ".join(facts)))
    rows = [{name: _shown(value) for name, value in row.items()} for row in run.preview(_ROWS)]
    config = {
        column.name: st.column_config.TextColumn(
            f"{column.name} ({column.type})", help=f"Type: {column.type}"
        )
        for column in info.columns
    }
    st.dataframe(pd.DataFrame(rows), column_config=config, height=250, hide_index=True)
    for note in info.notes:
        st.caption(plain_text(note))
    if info.problems:
        with st.expander(
            f"{counted(info.problems, 'row')} can't be used: kept in the table, marked as error"
        ):
            for problem in run.problems():
                st.text(problem)


def _shown(value: object) -> str:
    text = "" if value is None else value if isinstance(value, str) else str(value)
    return text if len(text) <= 1_000 else f"{text[:1_000]}…"


def rendered(run: Run, info: tables.TableInfo) -> None:
    """The first prompts as the model will get them, with their token counts."""
    recipe = run.recipe()
    engine = None
    st.caption("The first prompts, as the model gets them")
    try:
        engine = session.runtime().engine
        if "tokens" in engine.info.cannot:
            st.caption(f"No token counts: {plain_text(engine.info.cannot['tokens'])}")
    except EngineNotReady:
        st.caption("Token counts come when the engine is ready.")
    examples = 2 * len(run.spec.prompt.examples)  # messages, right before the row's own
    for index, row in enumerate(run.preview(_RENDERED), start=1):
        try:
            ask = recipe.ask(row)
        except WorkbenchError as error:
            st.error(f"Row {index}: {plain_text(str(error))}")
            continue
        with st.container(border=True):
            if ask is None:
                st.caption(f"Row {index}: the prompt is empty; this row will be skipped")
                continue
            repeated = examples and index > 1
            same = " · after the same examples" if repeated else ""
            st.caption(f"Row {index}{_tokens(engine, ask)}{same}")
            before, own = ask.messages[:-1], ask.messages[-1:]
            for message in before[: len(before) - examples] if repeated else before:
                st.caption(f"{message.role.capitalize()}: {plain_text(_shown(message.content))}")
            for message in own:
                st.text(_shown(message.content))
            if ask.text is not None:
                st.text(_shown(ask.text))
            for turn in ask.turns:
                st.caption(f"After the answer: {plain_text(_shown(turn))}")


def _tokens(engine: Engine | None, ask: Ask) -> str:
    if engine is None or "tokens" in engine.info.cannot:
        return ""
    if ask.text is not None:
        (outcome,) = engine.encode([ask.text], add_special_tokens=True)
    else:
        (outcome,) = encode_chats(engine, [ask.messages])
    if isinstance(outcome, WorkbenchError):
        return f" · {outcome.message}"
    limit = engine.info.max_model_len
    over = " · too long for the context" if len(outcome) >= limit else ""
    return f" · {len(outcome):,} of {limit:,} tokens{over}"
