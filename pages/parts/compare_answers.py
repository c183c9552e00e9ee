"""The answers of a comparison: all of them as a matrix, or two sets side by side."""

from __future__ import annotations

import streamlit as st

from core.comparing.cells import Place
from core.comparing.runner import ComparisonView
from pages.parts import session
from pages.parts.compare_header import progress
from pages.parts.compare_matrix import asked, matrix, pair, text_of
from pages.parts.compare_tokens import tokens
from pages.parts.markdown import model_text, plain_text

_POLL_S = 0.3
_PAGE_ROWS = 20
_NONE = "nothing"
_ALL = -1
_ROLES = {"system": "System prompt", "user": "User", "assistant": "Assistant"}
_LOOKS = {"words": "Differences", "formatted": "Formatted", "tokens": "Tokens"}


def draw_matrix(view: ComparisonView) -> None:
    """All answers; a fragment of its own while they are generated."""
    (_growing_matrix if view.is_live else _matrix)(view.comparison_id)


def draw_pair(view: ComparisonView) -> None:
    """Two sets side by side, prompt by prompt."""
    (_growing_pair if view.is_live else _pair)(view.comparison_id)


@st.fragment(run_every=_POLL_S)
def _growing_matrix(comparison_id: str) -> None:
    _matrix_of(_live_view(comparison_id))


@st.fragment
def _matrix(comparison_id: str) -> None:
    _matrix_of(session.comparisons().view(comparison_id))


@st.fragment(run_every=_POLL_S)
def _growing_pair(comparison_id: str) -> None:
    _pair_of(_live_view(comparison_id))


@st.fragment
def _pair(comparison_id: str) -> None:
    _pair_of(session.comparisons().view(comparison_id))


def _live_view(comparison_id: str) -> ComparisonView:
    """The comparison as it is now; once it has ended, the whole page is drawn anew."""
    view = session.comparisons().view(comparison_id)
    if view is None or not view.is_live:
        st.rerun()
    return view


# -- the matrix ---------------------------------------------------------------------


def _matrix_of(view: ComparisonView) -> None:
    key = f"compare:view:{view.comparison_id}"
    progress(view)
    sets, prompts, samples = view.spec.sets, len(view.spec.prompts), len(view.spec.seeds)
    page, shown, baseline = 1, tuple(range(samples)), view.spec.baseline
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if len(sets) > 1:
            choices = [*range(len(sets)), _NONE]
            chosen = st.selectbox(
                "Mark what differs from", choices, choices.index(view.spec.baseline), key=f"{key}:baseline",
                format_func=lambda one: one if one == _NONE else sets[one].name, width=260,
                persist_state="session",
            )  # fmt: skip
            baseline = None if chosen == _NONE else chosen
        if samples > 1:
            sample = st.selectbox(
                "Answers", [_ALL, *range(samples)], format_func=lambda one: _sample_name(view, one),
                key=f"{key}:sample", width=180, persist_state="session",
            )  # fmt: skip
            shown = shown if sample == _ALL else (sample,)
        if prompts > _PAGE_ROWS:
            page = st.pagination(-(-prompts // _PAGE_ROWS), key=f"{key}:page", max_visible_pages=5)
    rows = range((page - 1) * _PAGE_ROWS, min(page * _PAGE_ROWS, prompts))
    opened = matrix(f"{key}:matrix:{page}", view, prompts=rows, samples=shown, baseline=baseline)
    if opened is not None:
        open_pair(view, *opened, baseline)
        st.rerun()
    st.caption("Arrow keys move from answer to answer; Enter or a click opens one beside another set's.")


def _sample_name(view: ComparisonView, sample: int) -> str:
    if sample == _ALL:
        return "All"
    seed = view.spec.seeds[sample]
    return f"{sample + 1}" + (f" (seed {seed})" if seed is not None else "")


def open_pair(view: ComparisonView, prompt: int, column: int, baseline: int | None) -> None:
    """Show this cell beside the baseline's; the baseline's own beside the next set's."""
    sets = len(view.spec.sets)
    left = view.spec.baseline if baseline is None else baseline
    if left == column:
        left, column = column, (column + 1) % sets
    state, key = st.session_state, f"compare:view:{view.comparison_id}"
    state[f"{key}:tab"] = "pair"
    state[f"{key}:prompt"] = prompt
    state[f"{key}:left"], state[f"{key}:right"] = left, column


# -- side by side -------------------------------------------------------------------


def _pair_of(view: ComparisonView) -> None:
    key = f"compare:view:{view.comparison_id}"
    progress(view)
    place = _controls(key, view)
    if place is None:
        return
    left, right = place
    _asked(view, left, right)
    look = st.session_state[f"{key}:look"]
    if look == "words":
        pair(f"{key}:pair", view, (left, right))
        return
    for column, one in zip(st.columns(2, border=True), (left, right), strict=True):
        with column:
            st.markdown(f"**{plain_text(view.spec.sets[one.set].name)}**")
            cell = view.cells[one]
            if look == "tokens":
                tokens(f"{key}:tokens:{one.prompt}:{one.set}:{one.sample}", view, one)
            else:
                st.markdown(model_text(text_of(cell)) or "*(nothing)*")


def _controls(key: str, view: ComparisonView) -> tuple[Place, Place] | None:
    """Which prompt, which sets, which sample, how they are shown."""
    sets, prompts, samples = view.spec.sets, len(view.spec.prompts), len(view.spec.seeds)
    state = st.session_state
    state.setdefault(f"{key}:prompt", 0)
    state.setdefault(f"{key}:left", view.spec.baseline)
    state.setdefault(f"{key}:right", (view.spec.baseline + 1) % len(sets))
    names = [one.name for one in sets]
    sample = 0
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for side, label in (("left", "Left"), ("right", "Right")):
            name = f"{key}:{side}"
            st.selectbox(
                label, range(len(sets)), state[name], format_func=names.__getitem__, key=name, width=250,
                persist_state="session",
            )  # fmt: skip
        if samples > 1:
            sample = st.selectbox(
                "Answer", range(samples), format_func=lambda one: _sample_name(view, one), width=130,
                key=f"{key}:pair-sample", persist_state="session",
            )  # fmt: skip
    prompt = min(state[f"{key}:prompt"], prompts - 1)
    with st.container(horizontal=True, vertical_alignment="center"):
        if prompts > 1:
            st.button(
                "Previous", key=f"{key}:previous", disabled=prompt == 0, shortcut="Left", on_click=_step,
                args=(key, -1),
            )  # fmt: skip
            st.button(
                "Next", key=f"{key}:next", disabled=prompt == prompts - 1, shortcut="Right", on_click=_step,
                args=(key, 1),
            )  # fmt: skip
            st.markdown(f"Prompt **{prompt + 1}** of {prompts}")
        st.segmented_control(
            "Show", list(_LOOKS), format_func=_LOOKS.get, default="words", key=f"{key}:look", required=True,
            persist_state="session", label_visibility="collapsed",
        )  # fmt: skip
    return Place(prompt, state[f"{key}:left"], sample), Place(prompt, state[f"{key}:right"], sample)


def _step(key: str, by: int) -> None:
    st.session_state[f"{key}:prompt"] += by


def _asked(view: ComparisonView, left: Place, right: Place) -> None:
    """What both were asked, or each, where that differs."""
    ours, theirs = asked(view, left), asked(view, right)
    if ours == theirs:
        with st.container(border=True):
            _messages(ours)
    else:
        for column, messages in zip(st.columns(2, border=True), (ours, theirs), strict=True):
            with column:
                _messages(messages)
    reference = view.spec.prompts[left.prompt].reference
    if reference:
        st.caption("Right answer")
        st.text(reference)


def _messages(messages: list[tuple[str, str]]) -> None:
    for role, text in messages:
        if len(messages) > 1:
            st.caption(_ROLES[role])
        st.text(text)
