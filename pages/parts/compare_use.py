"""What comes of a comparison: a set as a preset or on the batch page, and files to keep or to send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from core.comparing import report
from core.comparing.cells import Vote
from core.comparing.runner import ComparisonView
from core.comparing.spec import SetSpec, to_prompt_spec
from core.errors import WorkbenchError
from core.prompt_styles import CHAT
from pages.parts import session
from pages.parts.compare_matrix import set_words
from pages.parts.markdown import plain_text

_BATCH_RUN = "batch:run"  # the run that the batch page shows
_POPOVER_PIXELS = 420


def remember_table(comparison_id: str, run_id: str | None) -> None:
    """The table that the prompts are from, for this browser session."""
    st.session_state[f"compare:table-of:{comparison_id}"] = run_id


def use_menu(view: ComparisonView) -> None:
    """Take one set further: to all rows of a table, or into every page as a preset."""
    identity, sets = view.comparison_id, view.spec.sets
    with st.popover("Use a set", icon=":material/rocket_launch:"), st.container(width=_POPOVER_PIXELS):
        place = st.selectbox(
            "Set", range(len(sets)), format_func=lambda number: sets[number].name,
            key=f"compare:use:{identity}",
        )  # fmt: skip
        one = sets[place]
        st.caption(plain_text(" · ".join(set_words(one)) or "The model's own defaults"))
        if st.button(
            "Run it over a table", icon=":material/table_rows:", key=f"compare:promote:{identity}",
            help="Opens the batch page with this prompt and these parameters filled in.",
        ):  # fmt: skip
            _promote(view, one)
        if one.style != CHAT:
            st.caption("The batch page asks by the model's own template: the set's prompt style stays here.")
        with st.form(f"compare:preset:{identity}:{place}", border=False):
            name = st.text_input("Name of the preset", one.name)
            if st.form_submit_button("Save as preset", icon=":material/bookmark_add:"):
                _save_preset(name, one, view)


def _promote(view: ComparisonView, one: SetSpec) -> None:
    prompt, params = to_prompt_spec(one, view.spec.prompts[0])
    st.session_state[session.PROMOTED] = {"prompt": prompt, "params": params, "name": one.name}
    run_id = st.session_state.get(f"compare:table-of:{view.comparison_id}")
    record = session.store().run(run_id) if run_id else None
    if record is not None and record.state == "draft":
        _forget_form(run_id)
        st.session_state[_BATCH_RUN] = run_id
    else:  # the table has a run by now: another one is chosen there
        st.session_state.pop(_BATCH_RUN, None)
    st.switch_page("pages/batch.py")


def _forget_form(run_id: str) -> None:
    """What the batch page's form holds for this table, so that it is filled anew."""
    for name in [name for name in st.session_state if isinstance(name, str) and f"-{run_id}" in name]:
        del st.session_state[name]


def _save_preset(name: str, one: SetSpec, view: ComparisonView) -> None:
    try:
        session.presets().save(name, one.params, f"From the comparison {view.name}")
    except WorkbenchError as error:
        st.error(plain_text(str(error)))
    else:
        st.success("Saved. Every page offers it under Presets.", icon=":material/check:")


def export_menu(view: ComparisonView) -> None:
    """Files of the whole comparison, made when somebody asks for them."""
    files: dict[str, tuple[str, str, Callable[[ComparisonView, Sequence[Vote]], str], str]] = {
        "Report": (
            "html", "text/html", report.to_html,
            "One HTML file that opens anywhere: answers, differences, scores, votes, specification.",
        ),
        "Answers as CSV": (
            "csv", "text/csv", lambda now, _votes: f"\ufeff{report.to_csv(now)}",
            "A line for each answer, with its figures; Excel reads it, too.",
        ),
        "Specification": (
            "json", "application/json", lambda now, _votes: report.to_spec_json(now),
            "All that is needed to repeat it: here, or with python -m core compare.",
        ),
    }  # fmt: skip
    identity = view.comparison_id
    with st.popover("Export", icon=":material/download:"), st.container(width=_POPOVER_PIXELS):
        for label, (ending, mime, make, about) in files.items():
            st.download_button(
                label, data=lambda make=make: _made(identity, make), file_name=f"comparison.{ending}",
                mime=mime, on_click="ignore", key=f"compare:export:{ending}:{identity}",
                icon=":material/download:",
            )  # fmt: skip
            st.caption(about)


def _made(comparison_id: str, make: Callable[[ComparisonView, Sequence[Vote]], str]) -> bytes:
    """The file, of what there is at the click."""
    comparisons = session.comparisons()
    view = comparisons.view(comparison_id)
    return make(view, comparisons.votes.list(comparison_id)).encode("utf-8") if view else b""
