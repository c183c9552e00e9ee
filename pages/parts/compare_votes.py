"""Which of two answers is better: voted blind, with random sides; and what the votes show."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.comparing.cells import Place, Vote
from core.comparing.runner import ComparisonView
from core.comparing.scores import ENOUGH, NO_DIFFERENCE
from core.comparing.votes import HUMAN, Pair, WinRate, win_rates
from core.errors import WorkbenchError
from pages.parts import compare_judge, session
from pages.parts.charts import counted
from pages.parts.compare_charts import Estimate, forest
from pages.parts.compare_matrix import pair
from pages.parts.markdown import plain_text

_CONFIG = {"displayModeBar": False}
_CHOICES = (("a", "Left is better", "1"), ("tie", "Equally good", "2"), ("b", "Right is better", "3"))


def draw(view: ComparisonView) -> None:
    """The next pair, then the judge model, then what the votes show."""
    if len(view.spec.sets) < 2:
        st.info("There is one set: nothing to hold it against.")
        return
    _vote(view)
    compare_judge.draw(view)
    _results(view)


# -- voting -------------------------------------------------------------------------


@st.fragment
def _vote(view: ComparisonView) -> None:
    key = f"compare:vote:{view.comparison_id}"
    votes = session.comparisons().votes
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sets = _sets(key, view)
        voter = st.text_input(
            "Your name", HUMAN, key=f"{key}:voter", width=160, persist_state="session",
            help="Several people can vote on one comparison, each with a name.",
        )  # fmt: skip
    voter = voter.strip() or HUMAN
    if voter.startswith("judge:"):
        st.error("Names that begin with judge: are for judge models.")
        return
    found = votes.next_pair(view.comparison_id, voter, sets)
    if found is None:
        judged = any(vote.voter == voter for vote in votes.list(view.comparison_id))
        words = "You have judged every pair." if judged else "There is no pair to judge."
        st.success(f"{words} Answers that are equal, or not complete, are no pair.", icon=":material/check:")
        if st.session_state.pop(f"{key}:last", None):
            st.rerun()
        return
    st.progress(found.done / found.total, f"{found.done:,} of {counted(found.total, 'pair')} judged")
    _show(key, view, found)
    with st.container(horizontal=True, horizontal_alignment="center"):
        for winner, label, shortcut in _CHOICES:
            st.button(
                label, key=f"{key}:{winner}", shortcut=shortcut, width=220, on_click=_record,
                args=(key, view.comparison_id, found, winner, voter),
            )  # fmt: skip
    st.caption("You are not told which set is which, and the sides are drawn anew for each pair.")


def _sets(key: str, view: ComparisonView) -> tuple[int, int] | None:
    """Which two sets are held against each other; None: any."""
    sets = view.spec.sets
    if len(sets) == 2:
        return None
    every = [(), *((one, other) for one in range(len(sets)) for other in range(one + 1, len(sets)))]
    chosen = st.selectbox(
        "Which sets", every, key=f"{key}:sets", persist_state="session", width=340,
        format_func=lambda two: f"{sets[two[0]].name} or {sets[two[1]].name}" if two else "Any two",
    )  # fmt: skip
    return chosen or None


def _show(key: str, view: ComparisonView, found: Pair) -> None:
    item = view.spec.prompts[found.prompt]
    with st.container(border=True, height=220 if len(item.text) > 800 else "content"):
        st.text(item.text)
    if item.reference:
        st.caption(f"Right answer: {plain_text(item.reference)}")
    places = tuple(Place(found.prompt, one, found.sample) for one in (found.set_a, found.set_b))
    pair(f"{key}:pair", view, places, named=False)


def _record(key: str, comparison_id: str, found: Pair, winner: str, voter: str) -> None:
    try:
        session.comparisons().votes.record(
            comparison_id, found.prompt, found.sample, found.set_a, found.set_b, winner, voter
        )
    except WorkbenchError as error:
        st.session_state[f"{key}:error"] = str(error)
    st.session_state[f"{key}:last"] = True


# -- what they show -----------------------------------------------------------------


@st.fragment
def _results(view: ComparisonView) -> None:
    key = f"compare:votes:{view.comparison_id}"
    votes = session.comparisons().votes.list(view.comparison_id)
    if not votes:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("What the votes show", anchor=False)
        st.button("Count again", icon=":material/refresh:", key=f"{key}:refresh", type="tertiary")
        shown = st.toggle(
            "Show", key=f"{key}:show", persist_state="session",
            help="Looking while you still vote may sway you.",
        )  # fmt: skip
    if not shown:
        return
    voters = list(dict.fromkeys(vote.voter for vote in votes))
    chosen = st.pills(
        "Votes of", voters, selection_mode="multi", default=voters, key=f"{key}:voters:{len(voters)}"
    )
    _counted(key, view, [vote for vote in votes if vote.voter in chosen])
    _reasons(view, [vote for vote in votes if vote.voter in chosen and vote.details.get("reasons")])


def _counted(key: str, view: ComparisonView, votes: Sequence[Vote]) -> None:
    if not votes:
        st.caption("No vote is chosen.")
        return
    rates = win_rates(votes)
    names = [one.name for one in view.spec.sets]
    ranked = sorted(rates.sets.items(), key=lambda entry: -entry[1].rate)
    figure = forest(
        [_line(names[place], rate) for place, rate in ranked],
        none=0.5, title="Win rate against all other sets; a tie is half a win", words=_percent,
        tick_format=".0%", span=(0, 1),
    )  # fmt: skip
    st.plotly_chart(figure, key=f"{key}:sets", config=_CONFIG)
    if len(rates.pairs) > 1:
        figure = forest(
            [_line(f"{names[one]} / {names[other]}", rate) for (one, other), rate in rates.pairs.items()],
            none=0.5, title="Win rate of the first against the second", words=_percent,
            tick_format=".0%", span=(0, 1),
        )  # fmt: skip
        st.plotly_chart(figure, key=f"{key}:pairs", config=_CONFIG)
    st.caption(
        f"95% intervals (Wilson). Nothing is claimed under {ENOUGH} votes, or where the interval holds "
        "one half. In brackets: won, tied, lost."
    )


def _line(name: str, rate: WinRate) -> Estimate:
    of = f"n = {rate.n} ({rate.wins}–{rate.ties}–{rate.losses})"
    return Estimate(name, rate.rate, rate.low, rate.high, of, rate.verdict, rate.verdict != NO_DIFFERENCE)


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _reasons(view: ComparisonView, votes: Sequence[Vote]) -> None:
    """What judges said of the first pairs."""
    if not votes:
        return
    names = [one.name for one in view.spec.sets]
    with st.expander(f"Reasons of the judge ({len(votes)})"):
        for vote in votes[:50]:
            best = {"a": names[vote.set_a], "b": names[vote.set_b], "tie": "equally good"}[vote.winner]
            reasons = " / ".join(str(reason) for reason in vote.details["reasons"])
            st.markdown(
                f"**{plain_text(view.spec.prompts[vote.prompt].title)}**: {plain_text(best)}. "
                f"{plain_text(reasons)}"
            )
