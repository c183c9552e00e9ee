"""Which comparison is on the page; the list of all; what can be done with the one that is open."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from core.comparing.runner import ComparisonView
from core.comparing.spec import read_spec
from core.errors import WorkbenchError
from pages.parts import compare_draft as draft
from pages.parts import session
from pages.parts.actions import attempt
from pages.parts.charts import counted
from pages.parts.compare_use import export_menu, use_menu
from pages.parts.markdown import plain_text

_CURRENT = "compare:current"
_LISTED = 30
_TITLE_CHARACTERS = 48
_POPOVER_PIXELS = 420


def current() -> ComparisonView | None:
    """The comparison of the address (?x=ID) or else the last one in this tab; None: a new one."""
    wanted = st.query_params.get("x") or st.session_state.get(_CURRENT)
    view = session.comparisons().view(wanted) if wanted else None
    if wanted and view is None:
        st.toast("That comparison was deleted.")
    show(view.comparison_id if view else None)
    return view


def show(comparison_id: str | None) -> None:
    st.session_state[_CURRENT] = comparison_id
    if comparison_id is None:
        st.query_params.pop("x", None)
    elif st.query_params.get("x") != comparison_id:
        st.query_params["x"] = comparison_id


def draw(view: ComparisonView | None) -> None:
    """Title, and the menus that lead elsewhere."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(plain_text(_short(view.name)) if view else "New comparison", anchor=False)
        if view is None:
            _import_menu()
        else:
            st.button("New", icon=":material/add:", on_click=_new, help="Set up a new comparison")
        _saved_menu()
        if view is not None:
            _more_menu(view)


def tabs(view: ComparisonView, names: Mapping[str, str]) -> str:
    """What to see of a comparison, and what can be made of it; gives the chosen one of `names`."""
    identity = view.comparison_id
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = st.segmented_control(
            "View", list(names), format_func=names.get, required=True, default=tab_of(identity),
            key=f"compare:view:{identity}:tab:{turn_of(identity)}", label_visibility="collapsed",
            persist_state="session",
        )  # fmt: skip
        st.session_state[f"compare:view:{identity}:shown"] = chosen
        st.button(
            "Change", icon=":material/edit:", on_click=_change, args=(view,),
            help="Set up another one that starts from this one's prompts and sets",
        )  # fmt: skip
        use_menu(view)
        export_menu(view)
    return chosen


def tab_of(comparison_id: str) -> str:
    """What is seen of this comparison."""
    return st.session_state.get(f"compare:view:{comparison_id}:shown", "answers")


def turn_of(comparison_id: str) -> int:
    """How often the page itself has changed what is seen: a part of the keys of the widgets that say so.

    Not their values: a rerun on its way from the browser would bring the old ones back.
    """
    return st.session_state.get(f"compare:view:{comparison_id}:turn", 0)


def choose_tab(comparison_id: str, tab: str) -> None:
    st.session_state[f"compare:view:{comparison_id}:shown"] = tab
    st.session_state[f"compare:view:{comparison_id}:turn"] = turn_of(comparison_id) + 1


def _short(name: str) -> str:
    return name if len(name) <= _TITLE_CHARACTERS else f"{name[: _TITLE_CHARACTERS - 1].rstrip()}…"


def _new() -> None:
    show(None)
    draft.fill(None)


def _change(view: ComparisonView) -> None:
    show(None)
    draft.fill(view.spec.model_copy(update={"name": ""}))


def _saved_menu() -> None:
    # a popover of its own for each comparison: what was open closes when another one is chosen in it
    menu = st.popover("Saved", icon=":material/history:", key=f"compare:saved:{st.session_state[_CURRENT]}")
    with menu, st.container(width=_POPOVER_PIXELS):
        search = st.text_input(
            "Search", key="compare:search", placeholder="Search names, prompts and sets",
            icon=":material/search:", label_visibility="collapsed",
        )  # fmt: skip
        found = session.comparisons().list(_LISTED, search)
        if not found:
            st.caption("Nothing found." if search else "Your comparisons will be listed here.")
        with st.container(height=360 if len(found) > 6 else "content", border=False, gap="small"):
            for one in found:
                with st.container(gap=None):
                    st.button(
                        plain_text(one.name), key=f"compare:open:{one.comparison_id}", type="tertiary",
                        on_click=show, args=(one.comparison_id,),
                    )  # fmt: skip
                    part = "" if one.complete == one.answers else f", {one.complete:,} there"
                    when = one.created_at.astimezone().strftime("%d %b, %H:%M")
                    st.caption(plain_text(f"{when} · {one.words.replace(' x ', ' × ')}{part}"))


def _import_menu() -> None:
    menu = st.popover("Open a file", icon=":material/upload_file:", key=f"{draft.key()}:open")
    with menu, st.container(width=_POPOVER_PIXELS):
        uploaded = st.file_uploader(
            "A specification", type=["json"], key="compare:import",
            help="A JSON file that was exported here, or written for python -m core compare.",
        )  # fmt: skip
        if uploaded is None or st.session_state.get("compare:imported") == uploaded.file_id:
            return
        try:
            spec = read_spec(uploaded.getvalue())
        except (WorkbenchError, UnicodeDecodeError) as error:
            st.error(plain_text(str(error)))
            return
        st.session_state["compare:imported"] = uploaded.file_id
        draft.fill(spec)
        st.rerun()


def _more_menu(view: ComparisonView) -> None:
    """Rename, repeat, delete."""
    identity = view.comparison_id
    with (
        st.popover("", icon=":material/more_horiz:", help="Rename, repeat, delete"),
        st.container(width=_POPOVER_PIXELS),
    ):
        with st.form(f"compare:rename:{identity}", border=False):
            name = st.text_input("Name", view.name)
            if st.form_submit_button("Rename"):
                attempt(lambda: session.comparisons().rename(identity, name))
        if st.button("Repeat it", icon=":material/replay:", help="Ask everything again, as a new comparison"):
            attempt(lambda: show(session.comparisons().start(view.spec)))
        st.button(
            "Delete", icon=":material/delete:", key=f"compare:delete:{identity}", on_click=_delete,
            args=(identity,), help="With its answers and votes; there is no way back",
        )  # fmt: skip


def _delete(comparison_id: str) -> None:
    session.comparisons().delete(comparison_id)
    show(None)


# -- how far it is ------------------------------------------------------------------


def progress(view: ComparisonView) -> None:
    """While it runs, how far it is, and Stop; at rest, what is missing, and how to get it."""
    total = len(view.cells)
    identity = view.comparison_id
    if view.is_live:
        with st.container(horizontal=True, vertical_alignment="center", height=44, border=False):
            st.progress(view.complete / total, f"{view.complete:,} of {counted(total, 'answer')}")
            st.button(
                "Stop", icon=":material/stop:", key=f"compare:stop:{identity}",
                on_click=session.comparisons().stop, args=(identity,),
            )  # fmt: skip
        return
    missing = total - view.complete
    if not missing:
        return
    names = {"error": "failed", "stopped": "stopped", "interrupted": "interrupted", "missing": "not asked"}
    words = ", ".join(f"{view.counts[state]:,} {name}" for state, name in names.items() if view.counts[state])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{view.complete:,} of {counted(total, 'answer')} are there: {words}.")
        st.button(
            "Get the rest", icon=":material/play_arrow:", key=f"compare:resume:{identity}", on_click=_resume,
            args=(identity,),
        )  # fmt: skip


def _resume(comparison_id: str) -> None:
    try:
        session.comparisons().resume(comparison_id)
    except WorkbenchError as error:
        st.toast(plain_text(str(error)))
