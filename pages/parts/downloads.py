"""A run's table as a file, in every format; and what was run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO

import streamlit as st

from core.batch import Progress
from core.command_line import command_line
from core.errors import WorkbenchError
from core.runs import Run
from core.tables.writers import OPENAI_BATCH
from pages.parts.markdown import plain_text

_FORMATS = {
    "CSV": ("csv", "csv", False, "UTF-8, for programs"),
    "CSV for Excel": ("csv", "csv", True, "UTF-8 with a byte-order mark, so that Excel reads every script"),
    "Excel": ("xlsx", "xlsx", False, "One workbook"),
    "JSON Lines": ("jsonl", "jsonl", False, "One object a row"),
    "Parquet": ("parquet", "parquet", False, "For pandas, DuckDB, Spark"),
}
_PROBLEMS = "downloads:problems"
_OPENAI = {"OpenAI Batch": (OPENAI_BATCH, "jsonl", False, "Result lines as OpenAI's Batch API gives them")}


def downloads(run: Run, progress: Progress) -> None:
    """A button for each format."""
    whole = progress.state == "finished"
    st.caption("Download all rows, in the file's order" if whole else "Download what is there")
    prompt = run.spec.prompt
    formats = _FORMATS | (_OPENAI if prompt is not None and prompt.mode == "openai" else {})
    stem = Path(run.spec.input.name).stem
    problems: dict[str, str] = st.session_state.setdefault(_PROBLEMS, {})
    with st.container(horizontal=True):
        for label, (format, ending, bom, help) in formats.items():
            st.download_button(
                label,
                data=lambda format=format, ending=ending, bom=bom: _exported(
                    run, format, ending, bom, problems
                ),
                file_name=f"{stem}-answers.{ending}",
                help=help,
                icon=":material/download:",
                on_click="ignore",
                key=f"download-{label}-{run.run_id}",
            )
    _problem(run.run_id)


def _exported(run: Run, format: str, ending: str, bom: bool, problems: dict[str, str]) -> BinaryIO:
    """The export as an open file that is gone from the disk once it is closed.

    The server calls it when somebody clicks, and shows nothing of what it raises: it is left in `problems`.
    """
    problems.pop(run.run_id, None)
    try:
        with tempfile.TemporaryDirectory(dir=run.folder) as folder:
            path = Path(folder) / f"answers.{ending}"
            run.export(path, format=format, bom=bom)
            return path.open("rb")
    except (WorkbenchError, OSError) as error:
        problems[run.run_id] = str(error)
        raise


@st.fragment(run_every=2.0)
def _problem(run_id: str) -> None:
    """Why the last download could not be made."""
    problem = st.session_state[_PROBLEMS].get(run_id)
    if problem:
        st.error(plain_text(problem))


def specification(run: Run) -> None:
    """What was run: the command line that repeats it, and run.json."""
    spec = run.spec
    with st.expander("What was run"):
        try:
            st.caption("The same from the command line")
            st.code(command_line(spec), language="shell", wrap_lines=True)
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        if spec.prompt is not None and spec.prompt.examples:
            st.caption("With the examples that are in run.json; --examples takes them from their table.")
        st.caption(f"run.json in {plain_text(str(run.folder))}")
        st.json(spec.model_dump(mode="json"), expanded=1)
