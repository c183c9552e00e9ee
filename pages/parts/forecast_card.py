"""What a run will take, before it; and afterwards, how that compares."""

from __future__ import annotations

import streamlit as st

from core.batch import Progress
from core.errors import EngineNotReady, WorkbenchError
from core.planning import forecast
from core.planning.forecast import Forecast
from core.runs import Run
from pages.parts import run_charts, session
from pages.parts.charts import counted, duration, metric_cells, short_number
from pages.parts.markdown import plain_text

_AT_ONCE_ROWS = 20_000


def draw(run: Run, title: str = "Forecast", *, with_lengths: bool = True) -> None:
    """What the whole run will take; large tables are looked at when somebody asks."""
    try:
        engine = session.runtime().engine
    except EngineNotReady:
        st.caption("The forecast comes when the engine is ready.")
        return
    st.subheader(title, anchor=False)
    made = _kept(run)
    if made is None and run.spec.input.rows > _AT_ONCE_ROWS:
        st.caption(f"Planning {counted(run.spec.input.rows, 'row')} takes some seconds.")
        if not st.button("Forecast", icon=":material/query_stats:"):
            return
    if made is None:
        with st.spinner("Looking at the rows"):
            try:
                made = forecast.forecast(run, engine, session.store())
            except WorkbenchError as error:
                st.error(plain_text(str(error)))
                return
        st.session_state[_key(run)] = (_asked(run), made)
    _card(made, with_lengths=with_lengths)


def keep(run: Run) -> None:
    """Write the forecast that was shown into run.json, to be held against what comes."""
    made = _kept(run)
    if made is not None:
        run.update(forecast=made.spec())


def _key(run: Run) -> str:
    return f"forecast-{run.run_id}"


def _asked(run: Run) -> str:
    """What the forecast hangs on: everything asked, and the model."""
    spec = run.spec
    info = session.runtime().status().info
    parts = (
        spec.prompt,
        spec.params,
        spec.overflow,
        spec.plan,
        info.model if info else "",
        len(spec.sessions),
    )
    return repr(parts)


def _kept(run: Run) -> Forecast | None:
    asked, made = st.session_state.get(_key(run), (None, None))
    return made if asked == _asked(run) else None


def _card(made: Forecast, *, with_lengths: bool) -> None:
    cells = metric_cells(5, 140)
    cells[0].metric("Requests", f"{made.requests:,}", help=_requests(made))
    cells[1].metric(
        "Prompt tokens",
        "–" if made.prompt_tokens is None else short_number(made.prompt_tokens),
        help=_prompts(made),
    )
    cells[2].metric(
        "Output tokens",
        ("≤ " if made.output_is_bound else "") + short_number(made.output_tokens),
        help=plain_text(made.output_basis),
    )
    cells[3].metric("Prefix hits", _share(made.cached_share), help=_prefixes(made))
    time = "–" if made.seconds is None else ("≤ " if made.output_is_bound else "") + duration(made.seconds)
    cells[4].metric("Time", time, help=plain_text(made.seconds_basis))
    if made.over_limit:
        how_many = ("" if made.exact else "About ") + counted(made.over_limit, "request")
        st.warning(
            f"{how_many} too long for the context of {made.max_model_len:,} tokens. They become errors, "
            "or are cut if you say so under “Parameters from columns, long prompts, speed”."
        )
    st.caption(plain_text(made.seconds_basis))
    if with_lengths and sum(made.prompt_counts):
        figure = run_charts.length_histogram(
            made.prompt_bins, made.prompt_counts, made.max_model_len, what="Prompt tokens"
        )
        st.plotly_chart(figure, config={"displayModeBar": False}, key="forecast-lengths")


def _requests(made: Forecast) -> str:
    shared = (
        f"{made.rows:,} rows, of which {made.duplicates:,} ask the same as another one and share its answer."
    )
    return shared if made.duplicates else f"{made.rows:,} rows, none of which asks the same as another one."


def _prompts(made: Forecast) -> str:
    if made.prompt_tokens is None:
        return "This engine counts the tokens of a prompt only when it is asked."
    looked_at = "" if made.exact else f", from {made.sampled:,} requests looked at"
    return f"{made.prompt_tokens:,} in all, {made.prompt_tokens_mean:,.0f} a request{looked_at}."


def _prefixes(made: Forecast) -> str:
    order = "The rows are reordered" if made.plan.reordered else "The rows keep the file's order"
    return (
        f"Share of the prompt tokens that the engine has computed just before. {order}; the output keeps it."
    )


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
        ("Prompt tokens", _number(expected.prompt_tokens), f"{prompt_tokens:,}"),
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
