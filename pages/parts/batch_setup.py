"""Before a run: choose a table, look at it, write the prompt, start."""

from __future__ import annotations

import shutil
from pathlib import Path

import streamlit as st

from core import openai_batch, prompts, revisions, tables
from core.errors import WorkbenchError
from core.jobs import Staging
from core.run_spec import Instructions
from core.runs import Run
from core.store import new_id
from pages.parts import forecast_card, queue_panel, run_actions, session, structured_form, table_preview
from pages.parts.answer_form import answer_form
from pages.parts.charts import counted
from pages.parts.job_panel import choose_run, forget_run, header
from pages.parts.markdown import plain_text
from pages.parts.prompt_form import examples_and_turns, prompt_form
from pages.parts.sampling_form import sampling_form

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reviews.csv"
EXAMPLE_TEMPLATE = (
    "Is this review of {{ product }} positive or negative? Answer with one word.\n\n{{ review }}"
)
_ENCODINGS = ("utf-8", "gb18030", "big5", "shift_jis", "euc_kr", "utf-16", "cp1252", "latin-1")
_MAIN_PARAMETERS = ("temperature", "max_tokens", "seed")
_TRY_ROWS = 20
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}


def choose_table() -> None:
    """Upload a file or take the example; it is read in the background and becomes a draft run."""
    _show_promoted()
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
        "Use the example table", icon=":material/table:", help=f"{EXAMPLE.name}: 40 product reviews."
    ):
        _stage(EXAMPLE, EXAMPLE.name)
    if session.runtime().settings.tables_dir is not None:
        with st.expander("A file on the server"):
            chosen = queue_panel.pick_server_file()
            if chosen is not None:
                _stage(chosen, chosen.name)
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
    instructions = _form(run, info, _first(run, info))
    valid = instructions is not None and _keep(run, instructions)
    if valid:
        table_preview.rendered(run, info)
    with st.container(horizontal=True):
        label = f"Run {counted(spec.input.rows, 'row')}"
        if st.button(label, type="primary", icon=":material/play_arrow:", disabled=not valid):
            _start(run)
        tried = min(_TRY_ROWS, spec.input.rows)
        if tried < spec.input.rows and st.button(
            f"Try {tried} rows",
            icon=":material/science:",
            disabled=not valid,
            help="Answers for a few rows, and the speed to forecast the rest by. They are kept.",
        ):
            _start(run, rows=tried)
    if valid:
        forecast_card.draw(run)


def edit(run: Run) -> None:
    """The same form for a run that has answers: only rows whose request changes are asked again."""
    info = run.info()
    header(run, "All runs")
    table_preview.draw(run, info)
    instructions = _form(run, info, revisions.instructions_of(run))
    with st.container(horizontal=True):
        go = st.button(
            "Run the rows whose request changed",
            type="primary",
            icon=":material/play_arrow:",
            disabled=instructions is None,
        )
        leave = st.button("Leave it as it is")
    if go:
        try:
            revisions.edit(run, session.store(), instructions)
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            run_actions.stop_editing()
            _start(run)
    if leave:
        run_actions.stop_editing()
        st.rerun()


def _start(run: Run, rows: int | None = None) -> None:
    forecast_card.keep(run)
    try:
        session.jobs().start(run.run_id, rows=rows)
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        _forget_upload()
        st.session_state.pop(session.PROMOTED, None)
        st.rerun()


def _show_promoted() -> None:
    """That a set of a comparison waits for its table."""
    promoted = st.session_state.get(session.PROMOTED)
    if promoted is None or "run_id" in promoted:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info(
            f"From your comparison: {plain_text(promoted['name'])}. Its prompt and parameters are filled in "
            "once you have chosen a table.",
            icon=":material/compare:",
        )
        st.button("Forget it", on_click=st.session_state.pop, args=(session.PROMOTED,))


def _promoted(run: Run) -> Instructions | None:
    """What a comparison found best, for the first table that is set up after it."""
    promoted = st.session_state.get(session.PROMOTED)
    if promoted is None or promoted.setdefault("run_id", run.run_id) != run.run_id:
        return None
    return Instructions.asking(promoted["prompt"], params=promoted["params"])


def _first(run: Run, info: tables.TableInfo) -> Instructions:
    """What a comparison found best or the draft says, or a start to edit."""
    promoted = _promoted(run)
    if promoted is not None:
        return promoted
    if run.spec.prompt is not None:
        return revisions.instructions_of(run)
    if openai_batch.is_batch(info.columns):
        return Instructions(mode="openai")
    return Instructions(template=first_template(run))


def _form(run: Run, info: tables.TableInfo, initial: Instructions) -> Instructions | None:
    """All that is asked, or None while a part of it can't be used."""
    st.subheader("Prompt", anchor=False)
    asked = prompt_form(run, info, initial)
    params = _params_form(run, initial)
    if asked["mode"] != "openai":
        asked |= examples_and_turns(run, asked, initial)
    more, answer_params = answer_form(run, info, initial)
    if structured_form.problem(f"answers-{run.run_id}:shape"):
        st.caption("Complete the shape of the answers, or choose free text.")
        return None
    if params is None:
        return None
    return Instructions(**asked, **more, params={**params, **answer_params})


def first_template(run: Run) -> str:
    """What the example asks; of any other table the column with the longest texts."""
    if run.spec.input.name == EXAMPLE.name and {"product", "review"} <= set(run.spec.input.columns):
        return EXAMPLE_TEMPLATE
    rows = run.preview(20)
    lengths = {name: sum(len(str(row[name] or "")) for row in rows) for name in run.spec.input.columns}
    return prompts.column_reference(max(lengths, key=lengths.get))


def _params_form(run: Run, initial: Instructions) -> dict | None:
    info = session.runtime().status().info
    try:
        return sampling_form(
            f"batch-{run.run_id}",
            info.generation_config if info else {},
            initial=initial.params,
            main=_MAIN_PARAMETERS,
            columns=len(_MAIN_PARAMETERS),
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
