"""How rows become prompts: a template, fields as JSON, or chats that the table holds; turns and examples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import streamlit as st

from core import few_shot, openai_batch, prompts, tables
from core.errors import WorkbenchError
from core.run_spec import ExampleSpec, Instructions, PromptSpec
from core.runs import Run
from core.store import new_id
from pages.parts import session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_MODES = {"template": "Template", "fields": "Columns as JSON", "messages": "Chats in a column"}
_ABOUT = {
    "template": "You write the prompt; {{ column }} stands for the row's own value.",
    "fields": "The model reads your instruction and the chosen columns as JSON. The order of the columns is "
    "chosen for speed.",
    "messages": "A column holds whole chats: a JSON list of objects with role and content.",
}
_MOST_TURNS = 8


def prompt_form(run: Run, info: tables.TableInfo, initial: Instructions) -> dict[str, Any]:
    """Draw the form; gives the fields of `Instructions` that make the prompt, but for examples and turns."""
    key = f"prompt-{run.run_id}"
    names = [column.name for column in info.columns]
    if openai_batch.is_batch(info.columns) and initial.mode == "openai":
        st.info(
            "This is an OpenAI Batch file: each line says itself what is asked, with its own parameters. "
            "Those below fill in what a line leaves out."
        )
        _model_names(initial)
        return {"mode": "openai", "batch_lines": initial.batch_lines}
    _seed(key, initial, names)
    mode = st.segmented_control(
        "Prompts are made from",
        list(_MODES),
        format_func=_MODES.get,
        key=f"{key}:mode",
        default=st.session_state[f"{key}:mode"],
        required=True,
        persist_state="session",
    )
    st.caption(_ABOUT[mode])
    asked: dict[str, Any] = {"mode": mode}
    if mode == "template":
        asked |= _template(key, names)
    elif mode == "fields":
        asked |= _fields(key, names)
    else:
        asked["messages_column"] = st.selectbox(
            "Column with the chats", names, key=f"{key}:messages", persist_state="session"
        )
    asked["system"] = st.text_area(
        "System prompt",
        key=f"{key}:system",
        value=st.session_state[f"{key}:system"],
        height=68,
        placeholder="None",
        help="May use columns too.",
        persist_state="session",
    )
    return asked


def _model_names(initial: Instructions) -> None:
    """What model names of lines that came through the API stand for, as it was when they came."""
    found = []
    for name, model in initial.batch_lines.models.items() if initial.batch_lines else ():
        params = [f"{param} {value}" for param, value in model.params.items()]
        adapter = [] if model.adapter in (None, name) else [f"adapter {model.adapter}"]
        if adapter or params:
            found.append(f"{name}: {', '.join(adapter + params)}")
    if found:
        st.caption(plain_text(f"Model names mean what they meant when the batch came. {'; '.join(found)}."))


def examples_and_turns(run: Run, asked: dict[str, Any], initial: Instructions) -> dict[str, Any]:
    """Draw what comes before and after the prompt that was `asked`; gives fields of `Instructions`."""
    key = f"prompt-{run.run_id}"
    count = len(st.session_state[f"{key}:examples"]) + st.session_state[f"{key}:turns"]
    title = "Examples and further turns" + (f" ({count})" if count else "")
    with st.expander(title, key=f"{key}:more"):  # by its key it stays open when its title changes
        examples = () if asked["mode"] == "messages" else _examples(key, asked)
        if _turns_from_column(key, initial.turns_column):
            return {"examples": examples, "turns_column": initial.turns_column}
        return {"examples": examples, "turns": _turns(key)}


def _seed(key: str, initial: Instructions, names: list[str]) -> None:
    state = st.session_state
    if f"{key}:mode" in state:
        return
    state[f"{key}:mode"] = initial.mode if initial.mode in _MODES else "template"
    template = initial.template
    if initial.prompt_column is not None:
        template = prompts.column_reference(initial.prompt_column)
    state[f"{key}:template"] = template
    state[f"{key}:instruction"] = initial.instruction
    state[f"{key}:fields"] = [name for name in initial.fields if name in names]
    state[f"{key}:messages"] = initial.messages_column if initial.messages_column in names else names[0]
    state[f"{key}:system"] = initial.system
    state[f"{key}:turns"] = len(initial.turns)
    for number, turn in enumerate(initial.turns):
        state[f"{key}:turn-{number}"] = turn
    state[f"{key}:examples"] = initial.examples


def _template(key: str, names: list[str]) -> dict[str, Any]:
    st.pills(
        "Insert a column",
        names[:40],
        key=f"{key}:insert",
        on_change=_insert_column,
        args=(key,),
    )
    template = st.text_area(
        "Template",
        key=f"{key}:template",
        value=st.session_state[f"{key}:template"],
        height=170,
        help="The prompt of each row. {{ column }} stands for the row's own value; "
        "{% if column %} ... {% endif %} works too (Jinja).",
        persist_state="session",
    )
    return {"template": template}


def _insert_column(key: str) -> None:
    name = st.session_state[f"{key}:insert"]
    if name is not None:
        text = st.session_state[f"{key}:template"].rstrip()
        st.session_state[f"{key}:template"] = f"{text} {prompts.column_reference(name)}".lstrip()
        st.session_state[f"{key}:insert"] = None


def _fields(key: str, names: list[str]) -> dict[str, Any]:
    instruction = st.text_area(
        "Instruction",
        key=f"{key}:instruction",
        value=st.session_state[f"{key}:instruction"],
        height=110,
        placeholder="Is this film for children? Answer yes or no.",
        persist_state="session",
    )
    fields = st.multiselect(
        "Columns the model reads", names, key=f"{key}:fields", placeholder="Choose", persist_state="session"
    )
    return {"instruction": instruction, "fields": tuple(fields)}


# -- examples --------------------------------------------------------------------


def _examples(key: str, asked: dict[str, Any]) -> tuple[ExampleSpec, ...]:
    """Few-shot examples: shown, and taken from a second table."""
    kept: tuple[ExampleSpec, ...] = st.session_state[f"{key}:examples"]
    st.markdown("**Examples** the model sees before each row")
    if kept:
        for example in kept[:3]:
            st.text(f"{_short(example.user)}\n→ {_short(example.assistant)}")
        if len(kept) > 3:
            st.caption(f"and {len(kept) - 3} more")
        st.button("Remove the examples", key=f"{key}:forget", on_click=_forget_examples, args=(key,))
        return kept
    uploaded = st.file_uploader(
        "A table with examples",
        type=[ending.lstrip(".") for ending in tables.FORMATS_IN],
        key=f"{key}:examples-file",
        help="It has the columns that the prompt uses, and one with the right answers.",
    )
    if uploaded is None:
        return ()
    path = session.runtime().settings.uploads_dir / f"{new_id()}{Path(uploaded.name).suffix.lower()}"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(uploaded, file)
        columns = [column.name for column in tables.preview(path, rows=3).columns]
        first, second = st.columns(2, vertical_alignment="bottom")
        answer = first.selectbox("Column with the answers", columns, index=len(columns) - 1)
        count = second.number_input("How many", 1, few_shot.MAX_EXAMPLES, 3)
        if st.button("Take these examples"):
            spec = PromptSpec(**{name: asked[name] for name in ("mode", "template", "instruction", "fields")
                                 if name in asked})  # fmt: skip
            st.session_state[f"{key}:examples"] = few_shot.load_examples(path, spec, answer, count=count)
            st.rerun()
    except WorkbenchError as error:
        st.error(plain_text(str(error).replace(path.name, uploaded.name)))
    finally:
        path.unlink(missing_ok=True)
    return ()


def _forget_examples(key: str) -> None:
    st.session_state[f"{key}:examples"] = ()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:120]}…"


# -- turns -------------------------------------------------------------------------


def _turns_from_column(key: str, column: str | None) -> bool:
    """Whether each row's turns stay those of the column that the command line named."""
    return column is not None and st.checkbox(
        f"Further turns from the column {plain_text(column)}",
        value=True,
        key=f"{key}:turns-column",
        help="Each cell holds a JSON list of questions. Without it, every row gets the turns written here.",
        persist_state="session",
    )


def _turns(key: str) -> tuple[str, ...]:
    """Further user messages, asked one after the other."""
    state = st.session_state
    st.markdown("**Further turns**, each asked after the answer to the one before")
    entered = []
    for number in range(state[f"{key}:turns"]):
        state.setdefault(f"{key}:turn-{number}", "")
        text = st.text_area(
            f"Turn {number + 2}",
            key=f"{key}:turn-{number}",
            value=st.session_state[f"{key}:turn-{number}"],
            height=68,
            placeholder="Now put it into one word.",
            persist_state="session",
        )
        entered.append(text)
    with st.container(horizontal=True):
        if state[f"{key}:turns"] < _MOST_TURNS:
            st.button("Add a turn", icon=":material/add:", on_click=_change_turns, args=(key, 1))
        if state[f"{key}:turns"]:
            st.button("Remove the last turn", on_click=_change_turns, args=(key, -1))
    if entered:
        st.caption(f"{counted(len(entered) + 1, 'question')} a row; the last answer is the row's answer.")
    return tuple(text for text in entered if text.strip())


def _change_turns(key: str, by: int) -> None:
    st.session_state[f"{key}:turns"] += by
