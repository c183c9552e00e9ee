"""What the answers of each set are like, and which differences are shown."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core.comparing.runner import ComparisonView
from core.comparing.scores import ENOUGH, METRICS, NO_DIFFERENCE, Difference, Metric, Scores, score
from pages.parts import session
from pages.parts.charts import counted, duration
from pages.parts.compare_charts import Estimate, forest
from pages.parts.markdown import plain_text

_SPEED = ("s", "tokens/s")
_CONFIG = {"displayModeBar": False}
_ENDED = {"stop": "finished", "length": "cut at the limit", "abort": "stopped"}


@st.fragment
def draw(view: ComparisonView) -> None:
    """Words first, then the picture of one figure, then all figures."""
    view = session.comparisons().view(view.comparison_id) or view
    key = f"compare:scores:{view.comparison_id}"
    sets = view.spec.sets
    if not view.complete:
        st.info("There is no answer to score yet.")
        return
    baseline = st.selectbox(
        "Compared with", range(len(sets)), view.spec.baseline, format_func=lambda one: sets[one].name,
        key=f"{key}:baseline", width=300, persist_state="session", disabled=len(sets) == 1,
    )  # fmt: skip
    scores = score(view.spec, view.cells, baseline)
    if view.is_live:
        st.caption(f"So far: {view.complete:,} of {counted(len(view.cells), 'answer')} are there.")
    if len(sets) > 1:
        _words(view, scores)
        _picture(key, view, scores)
    _table(view, scores)


def verdicts(scores: Scores, place: int) -> tuple[list[str], int]:
    """What is shown of one set against the baseline, in words; and of how many figures nothing is.

    Speed is left to the table: it depends on what else was answered at the same time.
    """
    shown, rest = [], 0
    for name in scores.metrics:
        found = scores.differences.get((place, name))
        if found is None or METRICS[name].unit in _SPEED:
            continue
        if found.verdict == NO_DIFFERENCE:
            rest += 1
        else:
            metric = METRICS[name]
            shown.append(f"{metric.title} {found.verdict} ({signed(metric, found.mean)})")
    return shown, rest


def _words(view: ComparisonView, scores: Scores) -> None:
    """A sentence for each set."""
    sets = view.spec.sets
    against = plain_text(sets[scores.baseline].name)
    lines = []
    for place, one in enumerate(sets):
        if place == scores.baseline:
            continue
        shown, rest = verdicts(scores, place)
        words = ", ".join(shown) if shown else "no difference shown in the answers"
        others = f"; no difference shown in {rest} others" if shown and rest else ""
        lines.append(f"- **{plain_text(one.name)}** against {against}: {plain_text(words + others)}.")
    st.markdown("\n".join(lines))
    prompts = max((found.n for found in scores.differences.values()), default=0)
    if prompts < ENOUGH:
        st.info(
            f"Differences are claimed from {ENOUGH} prompts on; there {'is' if prompts == 1 else 'are'} "
            f"{counted(prompts, 'prompt')}. Add prompts, or take rows of a table.",
            icon=":material/info:",
        )


def _picture(key: str, view: ComparisonView, scores: Scores) -> None:
    sets = view.spec.sets
    names = [name for name in scores.metrics if any(one == name for _place, one in scores.differences)]
    if not names:
        return
    shown = {name for (_place, name), found in scores.differences.items() if found.verdict != NO_DIFFERENCE}
    first = next(
        (place for place, name in enumerate(names) if name in shown and METRICS[name].unit not in _SPEED), 0
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox(
            "Figure", names, first, format_func=lambda one: METRICS[one].title, key=f"{key}:metric",
            width=300, persist_state="session",
        )  # fmt: skip
        st.caption(plain_text(METRICS[name].help))
    metric = METRICS[name]
    lines = [
        _line(sets[place].name, metric, found)
        for place in range(len(sets))
        if (found := scores.differences.get((place, name))) is not None
    ]
    figure = forest(
        lines,
        none=0.0,
        title=f"{metric.title}: difference to {plain_label(sets[scores.baseline].name)}",
        tick_format="+.1%" if metric.unit == "share" else "",
        words=lambda value: signed(metric, value),
    )
    st.plotly_chart(figure, key=f"{key}:forest", config=_CONFIG)
    if metric.unit in _SPEED:
        st.caption(
            "Speed depends on what else was answered at the same time: to measure it, ask less at once."
        )
    st.caption(
        "Means of the paired differences over prompts, with 95% bootstrap intervals. Grey: the interval "
        "holds zero, or there are too few prompts: no difference shown."
    )


def _line(name: str, metric: Metric, found: Difference) -> Estimate:
    is_shown = found.verdict != NO_DIFFERENCE
    verdict = found.verdict
    if is_shown and metric.better:
        verdict += ": better" if found.verdict == metric.better else ": worse"
    return Estimate(name, found.mean, found.low, found.high, f"n = {found.n}", verdict, is_shown)


def plain_label(text: str) -> str:
    """For titles of charts, which read some HTML."""
    return " ".join(text.split()).replace("<", "‹").replace(">", "›")[:60]


def _table(view: ComparisonView, scores: Scores) -> None:
    """All means; a figure's meaning in its heading's help."""
    st.markdown("**All figures**, means over prompts")
    frame = pd.DataFrame(
        {
            "Set": [one.name for one in view.spec.sets],
            "Ended": [_ended(scores, place) for place in range(len(view.spec.sets))],
            **{
                name: [
                    _shown(METRICS[name], scores.means[place, name].mean)
                    if (place, name) in scores.means
                    else None
                    for place in range(len(view.spec.sets))
                ]
                for name in scores.metrics
            },
        }
    )
    columns = {
        name: st.column_config.NumberColumn(
            METRICS[name].title, help=METRICS[name].help, format=_format(METRICS[name])
        )
        for name in scores.metrics
    }
    columns["Set"] = st.column_config.TextColumn(pinned=True)
    columns["Ended"] = st.column_config.TextColumn(help="How the complete answers ended.")
    st.dataframe(frame, hide_index=True, column_config=columns)


def _ended(scores: Scores, place: int) -> str:
    found = scores.finished.get(place, {})
    return ", ".join(f"{number:,} {_ENDED.get(reason, reason)}" for reason, number in found.items())


def _format(metric: Metric) -> str:
    return {"share": "%.1f %%", "tokens": "%.1f", "s": "%.3f s", "tokens/s": "%.1f"}.get(metric.unit, "%.3f")


def _shown(metric: Metric, mean: float) -> float:
    return mean * 100 if metric.unit == "share" else mean


def signed(metric: Metric, value: float) -> str:
    """A difference in the figure's unit: +12.0 points, −3.4 tokens, +85 ms."""
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    size = abs(value)
    match metric.unit:
        case "share":
            return f"{sign}{size * 100:.1f} points"
        case "tokens":
            return f"{sign}{size:.1f} tokens"
        case "s":
            return f"{sign}{duration(size)}"
        case "tokens/s":
            return f"{sign}{size:.1f} tokens/s"
        case _:
            return f"{sign}{size:.3f}"
