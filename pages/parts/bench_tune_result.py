"""What a search for settings has tried: a picture of all trials with their spread, and the table."""

from __future__ import annotations

import html

import plotly.graph_objects as go
import streamlit as st

from core.bench import report
from core.bench.tuning_plan import Trial, TuningView
from pages.parts import bench_nav
from pages.parts.charts import duration
from pages.parts.run_charts import ACCENT

_QUIET = "#8494A3"
_ROW_PIXELS, _LEAST_PIXELS = 30, 120
_CONFIG = {"displayModeBar": False}
_STATES = {"loading": "Loading", "measuring": "Measuring", "failed": "Failed", "stopped": "Stopped"}


def evidence(view: TuningView, key: str) -> None:
    """Every trial, the first those of before."""
    if not view.trials:
        return
    if sum(trial.figure is not None for trial in view.trials) > 1:
        st.caption(f"{view.plan.goal.title} of each trial, with 95% intervals where it was repeated")
        st.plotly_chart(picture(view), config=_CONFIG, key=f"{key}:picture:{view.group}",
                        alt="What each choice of settings reached")  # fmt: skip
    st.dataframe([_row(view, place) for place in range(len(view.trials))], hide_index=True)
    measured = [trial for trial in view.trials if trial.benchmark_ids]
    if measured and not view.is_live:
        st.button(
            "All of them among the results", icon=":material/list:", type="tertiary", key=f"{key}:results",
            on_click=bench_nav.open_result, args=(None,),
        )  # fmt: skip


def picture(view: TuningView) -> go.Figure:
    """A mark for each measured trial, its interval, and a line at the settings of before."""
    shown = [(place, trial) for place, trial in enumerate(view.trials) if trial.figure is not None]
    figure = go.Figure()
    for place, trial in reversed(shown):
        found = trial.figure
        assert found is not None
        is_best = place == view.best
        errors = None
        if found.low is not None and found.high is not None and found.of == "repeats":
            errors = {
                "type": "data",
                "array": [found.high - found.value],
                "arrayminus": [found.value - found.low],
            }
        figure.add_trace(
            go.Scatter(
                x=[found.value], y=[html.escape(trial.title)], error_x=errors, mode="markers",
                marker={"color": ACCENT if is_best else _QUIET, "size": 13 if is_best else 9},
                hovertemplate="%{y}: %{x:,.1f} " + view.plan.goal.unit + "<extra></extra>",
            )
        )  # fmt: skip
    start = view.trials[0].figure
    if start is not None:
        figure.add_vline(start.value, line={"color": _QUIET, "width": 1, "dash": "dot"})
    figure.update_layout(
        height=max(_LEAST_PIXELS, 50 + _ROW_PIXELS * len(shown)),
        margin={"l": 10, "r": 16, "t": 8, "b": 10},
        showlegend=False,
        xaxis={"title": view.plan.goal.unit, "tickformat": ","},
        yaxis={"automargin": True},
    )
    return figure


def _row(view: TuningView, place: int) -> dict[str, str]:
    trial, goal = view.trials[place], view.plan.goal
    figure = trial.figure
    mark = "★ " if place == view.best and place else ""
    return {
        "Settings": f"{mark}{trial.title}",
        goal.title: "–" if figure is None else report.in_words(figure.value, goal),
        "Repeats": "–" if figure is None else f"{len(figure.values)}",
        "Against the best then": _against(trial) if place else "",
        "Load": duration(trial.load_s),
        "What came of it": trial.message or _STATES.get(trial.state, ""),
    }


def _against(trial: Trial) -> str:
    found = trial.difference
    if found is None:
        return "–"
    if len(trial.figure.values if trial.figure else ()) < 2:
        return f"{found.share:+.1%}" if found.share is not None else "–"
    share = f"{found.share:+.1%}: " if found.share is not None else ""
    return f"{share}{found.verdict}"
