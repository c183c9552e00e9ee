"""Before a run: choose a table, look at it, write the prompt, start."""

from __future__ import annotations

import shutil
from pathlib import Path

import streamlit as st

from core import prompts, tables
from core.errors import WorkbenchError
from core.jobs import Staging
from core.run_spec import Instructions
from core.runs import Run
from core.store import new_id
from pages.parts import session, table_preview
from pages.parts.charts import counted
from pages.parts.job_panel import choose_run, forget_run, header
from pages.parts.markdown import plain_text
from pages.parts.sampling_form import sampling_form

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reviews.csv"
_EXAMPLE_TEMPLATE = (
    "Is this review of {{ product }} positive or negative? Answer with one word.\n\n{{ review }}"
)
_ENCODINGS = ("utf-8", "gb18030", "big5", "shift_jis", "euc_kr", "utf-16", "cp1252", "latin-1")
_MAIN_PARAMETERS = ("temperature", "max_tokens", "seed")
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}


def choose_table() -> None:
    """Upload a file or take the example; it is read in the background and becomes a draft run."""
    staging: Staging | None = st.session_state.get("staging")
    if staging is not None:
        _show_staging()
        return
    uploaded = st.file_uploader(
        "Your table",
        type=[ending.lstrip(".") for ending in tables.FORMATS_IN],
        help="CSV, TSV, JSON Lines, Parquet or Excel, up to 2 GB. Encoding and delimiter are found out.",
    )
    if uploaded is not None and st.session_state.get("staged_upload") != uploaded.file_id:
        st.session_state["staged_upload"] = uploaded.file_id
        path = session.runtime().settings.uploads_dir / f"{new_id()}{Path(uploaded.name).suffix.lower()}"
        with path.open("wb") as file:
            shutil.copyfileobj(uploaded, file)
        _stage(path, uploaded.name)
    if st.button(
        "Use the example table", icon=":material/table:", help=f"{_EXAMPLE.name}: 40 product reviews."
    ):
        _stage(_EXAMPLE, _EXAMPLE.name)
    if "staging_error" in st.session_state:
        st.error(plain_text(st.session_state["staging_error"]))


def _stage(path: Path, name: str, options: tables.ReadOptions | None = None) -> None:
    st.session_state.pop("staging_error", None)
    st.session_state["upload"] = (path, name)
    st.session_state["staging"] = session.jobs().stage_later(path, name=name, options=options)
    st.rerun()


@st.fragment(run_every=0.3)
def _show_staging() -> None:
    staging: Staging | None = st.session_state.get("staging")
    if staging is None:
        return
    st.progress(
        min(staging.share, 1.0), f"Reading {plain_text(staging.name)}: {counted(staging.rows, 'row')}"
    )
    if not staging.future.done():
        return
    del st.session_state["staging"]
    try:
        run = staging.future.result()
    except WorkbenchError as error:
        st.session_state["staging_error"] = str(error)
    else:
        choose_run(run.run_id)
    st.rerun()


def draft(run: Run) -> None:
    """The staged table and the form that starts the run."""
    spec = run.spec
    info = run.info()
    header(run, "Another table")
    table_preview.draw(run, info)
    _read_differently(run, info)
    st.subheader("Prompt")
    left, right = st.columns([3, 1], gap="large")
    with left:
        template, system, answer_column = _prompt_form(run)
    with right:
        params = _params_form(run)
    instructions = Instructions(
        template=template, system=system, params=params or {}, answer_column=answer_column
    )
    valid = params is not None and _keep(run, instructions)
    if valid:
        table_preview.rendered(run, info)
    label = f"Run {counted(spec.input.rows, 'row')}"
    if st.button(label, type="primary", icon=":material/play_arrow:", disabled=not valid):
        try:
            session.jobs().start(run.run_id)
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            _forget_upload()
            st.rerun()


def _prompt_form(run: Run) -> tuple[str, str, str]:
    key = f"template-{run.run_id}"
    if key not in st.session_state:
        st.session_state[key] = run.spec.prompt.template if run.spec.prompt else _first_template(run)
        st.session_state[f"system-{run.run_id}"] = run.spec.prompt.system if run.spec.prompt else ""
        st.session_state[f"answer-{run.run_id}"] = run.spec.answer_column
    names = run.spec.input.columns
    st.pills(
        "Insert a column",
        names[:40],
        key=f"insert-{run.run_id}",
        on_change=_insert_column,
        args=(run.run_id,),
    )
    template = st.text_area(
        "Template",
        key=key,
        height=170,
        help="The prompt of each row. {{ column }} stands for the row's own value; "
        "{% if column %} ... {% endif %} works too (Jinja).",
    )
    system = st.text_area(
        "System prompt",
        key=f"system-{run.run_id}",
        height=68,
        placeholder="None",
        help="May use columns too.",
    )
    answer_column = st.text_input(
        "Answer column",
        key=f"answer-{run.run_id}",
        help="Name of the new column; the status, error and token columns start with it.",
    )
    return template, system, answer_column.strip()


def _insert_column(run_id: str) -> None:
    name = st.session_state[f"insert-{run_id}"]
    if name is not None:
        key = f"template-{run_id}"
        st.session_state[key] = f"{st.session_state[key].rstrip()} {prompts.column_reference(name)}".lstrip()
        st.session_state[f"insert-{run_id}"] = None


def _first_template(run: Run) -> str:
    """A start to edit: the column with the longest texts."""
    if run.spec.input.name == _EXAMPLE.name and {"product", "review"} <= set(run.spec.input.columns):
        return _EXAMPLE_TEMPLATE
    rows = run.preview(20)
    lengths = {name: sum(len(str(row[name] or "")) for row in rows) for name in run.spec.input.columns}
    return prompts.column_reference(max(lengths, key=lengths.get))


def _params_form(run: Run) -> dict | None:
    info = session.runtime().status().info
    try:
        return sampling_form(
            f"batch-{run.run_id}",
            info.generation_config if info else {},
            initial=run.spec.params,
            main=_MAIN_PARAMETERS,
        )
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return None


def _keep(run: Run, instructions: Instructions) -> bool:
    """Write the instructions into the draft, so that a refresh loses nothing; say what is wrong with them."""
    try:
        run.configure(instructions)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
        return False
    return True


def _read_differently(run: Run, info: tables.TableInfo) -> None:
    upload = st.session_state.get("upload")
    if upload is None or not upload[0].exists() or upload[1] != run.spec.input.name:
        return
    path, name = upload
    sheets = tables.sheets(path) if info.format == "xlsx" else []
    if info.format not in ("csv", "tsv", "jsonl") and len(sheets) < 2:
        return
    with st.expander("Does it look wrong? Read it differently"), st.form("read", border=False):
        columns = st.columns(3)
        sheet = encoding = delimiter = None
        if sheets:
            sheet = columns[0].selectbox("Sheet", sheets, index=sheets.index(info.sheet) if info.sheet else 0)
        else:
            encoding = columns[0].selectbox("Encoding", _ENCODINGS, index=None, placeholder=info.encoding)
            delimiter = columns[1].selectbox(
                "Delimiter",
                list(_DELIMITERS),
                index=None,
                format_func=_DELIMITERS.get,
                placeholder=_DELIMITERS.get(info.delimiter or "", "found out"),
                disabled=info.format == "jsonl",
            )
        if st.form_submit_button("Read again", icon=":material/refresh:"):
            session.jobs().delete(run.run_id)
            forget_run()
            _stage(path, name, tables.ReadOptions(encoding=encoding, delimiter=delimiter, sheet=sheet))


def _forget_upload() -> None:
    path, _name = st.session_state.pop("upload", (None, None))
    if path is not None and path.parent == session.runtime().settings.uploads_dir:
        path.unlink(missing_ok=True)
