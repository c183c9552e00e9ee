"""The answers of a comparison: all of them as a matrix, or two sets side by side."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from core.comparing.cells import Cell, Place
from core.comparing.runner import ComparisonView
from pages.parts import session
from pages.parts.compare_header import choose_tab, progress, tab_of, turn_of
from pages.parts.compare_matrix import asked, matrix, pair, parted
from pages.parts.compare_tokens import tokens
from pages.parts.markdown import model_text, plain_text

_POLL_S, _SLOW_POLL_S = 0.3, 1.0
_FEW = 60
_PAGE_ROWS, _PAGE_ANSWERS = 20, 240
_HERE = "answers"
_NONE = "nothing"
_ALL = -1
_ROLES = {"system": "System prompt", "user": "User", "assistant": "Assistant"}
_LOOKS = {"words": "Differences", "formatted": "Formatted", "tokens": "Tokens"}


def draw_matrix(view: ComparisonView) -> None:
    """All answers; a fragment of its own, drawn again and again while they are generated."""
    _fragment(_matrix_of, view)


def draw_pair(view: ComparisonView) -> None:
    """Two sets side by side, prompt by prompt."""
    _fragment(_pair_of, view)


def _fragment(draw: Callable[[ComparisonView], None], view: ComparisonView) -> None:
    if view.is_live:  # many answers take a while to be drawn: less often, so that clicks get their turn
        often = _POLL_S if len(view.cells) <= _FEW else _SLOW_POLL_S
        st.fragment(lambda: draw(_live_view(view.comparison_id)), run_every=often)()
    else:
        st.fragment(lambda: draw(_resting_view(view.comparison_id)))()


def _live_view(comparison_id: str) -> ComparisonView:
    """The comparison as it is now; once it has ended, the whole page is drawn anew."""
    view = session.comparisons().view(comparison_id)
    if view is None or not view.is_live:
        st.rerun()
    return view


def _resting_view(comparison_id: str) -> ComparisonView:
    """The other way round: answers that are generated again need a fragment that looks after them."""
    view = session.comparisons().view(comparison_id)
    if view is None or view.is_live:
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
        size = max(3, min(_PAGE_ROWS, _PAGE_ANSWERS // (len(sets) * len(shown))))
        if prompts > size:
            page = st.pagination(-(-prompts // size), key=f"{key}:page:{size}", max_visible_pages=5)
    rows = range((page - 1) * size, min(page * size, prompts))
    matrix(
        f"{key}:matrix:{size}:{page}", view, prompts=rows, samples=shown, baseline=baseline,
        on_open=lambda prompt, column: _open_pair(view, prompt, column, baseline),
    )  # fmt: skip
    if tab_of(view.comparison_id) != _HERE:  # by the call before, which only this fragment has seen
        st.rerun()
    st.caption("Arrow keys move from answer to answer; Enter or a click opens one beside another set's.")


def _sample_name(view: ComparisonView, sample: int) -> str:
    if sample == _ALL:
        return "All"
    seed = view.spec.seeds[sample]
    return f"{sample + 1}" + (f" (seed {seed})" if seed is not None else "")


def _open_pair(view: ComparisonView, prompt: int, column: int, baseline: int | None) -> None:
    """Show this cell beside the baseline's; the baseline's own beside the next set's."""
    sets = len(view.spec.sets)
    left = view.spec.baseline if baseline is None else baseline
    if left == column:
        left, column = column, (column + 1) % sets
    name = f"compare:view:{view.comparison_id}:places"
    st.session_state[name] = {"prompt": prompt, "left": left, "right": column}
    choose_tab(view.comparison_id, "pair")


# -- side by side -------------------------------------------------------------------


def _pair_of(view: ComparisonView) -> None:
    key = f"compare:view:{view.comparison_id}"
    progress(view)
    left, right = _controls(key, view)
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
                _formatted(cell)


def _formatted(cell: Cell) -> None:
    said = parted(cell)
    if said.reasoning:
        with st.expander("Thoughts", type="compact"):
            st.markdown(model_text(said.reasoning))
    st.markdown(model_text(said.answer) or "*(nothing)*")


def _controls(key: str, view: ComparisonView) -> tuple[Place, Place]:
    """Which prompt, which sets, which sample, how they are shown."""
    sets, prompts, samples = view.spec.sets, len(view.spec.prompts), len(view.spec.seeds)
    base = view.spec.baseline
    places = st.session_state.setdefault(
        f"{key}:places", {"prompt": 0, "left": base, "right": (base + 1) % len(sets)}
    )
    turn, sample = turn_of(view.comparison_id), 0
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for side, label in (("left", "Left"), ("right", "Right")):
            places[side] = st.selectbox(
                label, range(len(sets)), places[side], format_func=lambda one: sets[one].name, width=250,
                key=f"{key}:{side}:{turn}", persist_state="session",
            )  # fmt: skip
        if samples > 1:
            sample = st.selectbox(
                "Answer", range(samples), format_func=lambda one: _sample_name(view, one), width=130,
                key=f"{key}:pair-sample", persist_state="session",
            )  # fmt: skip
    prompt = places["prompt"]
    with st.container(horizontal=True, vertical_alignment="center"):
        if prompts > 1:
            st.button(
                "Previous", key=f"{key}:previous", disabled=prompt == 0, shortcut="Left", on_click=_step,
                args=(places, -1),
            )  # fmt: skip
            st.button(
                "Next", key=f"{key}:next", disabled=prompt == prompts - 1, shortcut="Right", on_click=_step,
                args=(places, 1),
            )  # fmt: skip
            st.markdown(f"Prompt **{prompt + 1}** of {prompts}")
        st.segmented_control(
            "Show", list(_LOOKS), format_func=_LOOKS.get, default="words", key=f"{key}:look", required=True,
            persist_state="session", label_visibility="collapsed",
        )  # fmt: skip
    return Place(prompt, places["left"], sample), Place(prompt, places["right"], sample)


def _step(places: dict[str, int], by: int) -> None:
    places["prompt"] += by


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
