"""Which section of the benchmark page is seen, which result is open, what the form was filled with."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from core.bench.spec import BenchSpec

_SECTION, _TURN, _OPEN = "bench:section", "bench:turn", "bench:open"
_DRAFT, _NUMBER, _FOLLOWED = "bench:draft", "bench:draft-number", "bench:followed"
RUN, RESULTS, COMPARE = "run", "results", "compare"


def go(section: str) -> None:
    """Show this section. For callbacks, or before a rerun."""
    st.session_state[_SECTION] = section
    # a new widget, not a new value: a rerun on its way from the browser would bring the old one back
    st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1


def open_result(benchmark_id: str | None) -> None:
    """Show this benchmark among the results; None: their list."""
    st.session_state[_OPEN] = benchmark_id
    if benchmark_id is None:
        st.query_params.pop("bench", None)
    else:
        st.query_params["bench"] = benchmark_id
    go(RESULTS)


def opened() -> str | None:
    """The benchmark that is open."""
    return st.session_state.get(_OPEN)


def section(titles: Mapping[str, str]) -> str:
    """Draw the choice of section, and give it. An address with ?bench=ID opens that benchmark."""
    wanted = st.query_params.get("bench")
    if wanted and wanted != opened():
        open_result(wanted)
    current = st.session_state.get(_SECTION, RUN)
    found = st.segmented_control(
        "Section", list(titles), format_func=titles.get, required=True,
        default=current if current in titles else RUN,
        key=f"bench:section:{st.session_state.get(_TURN, 0)}", label_visibility="collapsed",
        persist_state="session",
    )  # fmt: skip
    st.session_state[_SECTION] = found
    if found != RESULTS:
        st.query_params.pop("bench", None)
        st.session_state.pop(_OPEN, None)
    elif opened() is not None:
        st.query_params["bench"] = opened()
    return found


# -- the form ---------------------------------------------------------------------


def draft_key() -> str:
    """What the keys of the form's widgets begin with: filling it anew makes new widgets."""
    return f"bench:{st.session_state.get(_NUMBER, 0)}"


def initial() -> BenchSpec | None:
    """What the form was filled with; None: its own beginning."""
    return st.session_state.get(_DRAFT)


def fill(spec: BenchSpec | None) -> None:
    """Show the form with this specification in it."""
    prefix = f"{draft_key()}:"
    for name in [name for name in st.session_state if isinstance(name, str) and name.startswith(prefix)]:
        del st.session_state[name]
    st.session_state[_NUMBER] = st.session_state.get(_NUMBER, 0) + 1
    st.session_state[_DRAFT] = spec
    open_result(None)
    go(RUN)


# -- the benchmark that this browser session watches -------------------------------


def follow(benchmark_id: str | None) -> None:
    st.session_state[_FOLLOWED] = benchmark_id


def followed() -> str | None:
    return st.session_state.get(_FOLLOWED)
