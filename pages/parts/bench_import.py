"""Results that vLLM itself measured: files of `vllm bench serve`, `throughput` and `latency`."""

from __future__ import annotations

import streamlit as st

from core.errors import WorkbenchError
from pages.parts import session
from pages.parts.charts import counted
from pages.parts.markdown import plain_text

_TAKEN, _TOLD = "bench:import:taken", "bench:import:told"


def draw() -> None:
    """The uploader; each file that was taken or refused is told of once."""
    st.caption(
        "Results of `vllm bench serve`, `throughput` or `latency` (`--save-result`, `--output-json`), also "
        "with `--save-detailed` or `--append-result`. With the details their requests are compared, too."
    )
    uploaded = st.file_uploader(
        "Files of vllm bench", type=["json", "jsonl"], accept_multiple_files=True, key="bench:import:files",
        label_visibility="collapsed",
    )  # fmt: skip
    taken: dict[str, str] = st.session_state.setdefault(_TAKEN, {})  # what became of each file
    new = 0
    for file in uploaded:
        if file.file_id not in taken:
            taken[file.file_id] = _take(file.name, file.getvalue())
            new += taken[file.file_id] == ""
    if new:
        st.session_state[_TOLD] = f"{counted(new, 'file')} taken in."
        st.rerun()  # lists above this part were drawn without them
    for file in uploaded:
        if taken[file.file_id]:
            st.error(f"{plain_text(file.name)}: {plain_text(taken[file.file_id])}")
    if told := st.session_state.pop(_TOLD, None):
        st.success(told, icon=":material/check:")


def _take(name: str, data: bytes) -> str:
    """ "" when it is a benchmark now, else why not."""
    try:
        session.benchmarks().import_file(name, data)
    except WorkbenchError as error:
        return str(error)
    return ""
