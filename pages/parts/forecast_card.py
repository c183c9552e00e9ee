"""What a run will take, before it; and afterwards, how that compares."""

from __future__ import annotations

import streamlit as st

from core.batch import Progress
from core.runs import Run
from pages.parts.charts import duration


def draw(run: Run) -> None:
    return


def compare(run: Run, progress: Progress) -> None:
    """Forecast against actual, once the run is done."""
    expected = run.spec.forecast
    if expected is None or progress.state != "finished":
        return
    counts, sessions = progress.counts, run.spec.sessions
    prompt_tokens = sum(session.prompt_tokens for session in sessions)
    cached = sum(session.cached_tokens for session in sessions)
    share = cached / prompt_tokens if prompt_tokens else None
    lines = [
        ("Requests", f"{expected.requests:,}", f"{counts.done - counts.shared:,}"),
        ("Prompt tokens", f"{expected.prompt_tokens:,}", f"{counts.prompt_tokens:,}"),
        ("Output tokens", _number(expected.output_tokens), f"{counts.output_tokens:,}"),
        ("Prefix hits", _share(expected.cached_share), _share(share)),
        ("Time", duration(expected.seconds), duration(progress.work_s)),
    ]
    with st.expander("Forecast and what came"):
        st.dataframe(
            {
                "": [line[0] for line in lines],
                "Forecast": [line[1] for line in lines],
                "Actual": [line[2] for line in lines],
            },
            hide_index=True,
        )


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
