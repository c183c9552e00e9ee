"""How far a point stayed from what the device can give: figures, the roof over batch sizes, its words."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import streamlit as st

from core.bench import device_rates, files, limits, roofline
from core.bench.limits import Limit, Unknown
from core.bench.records import BenchView, PointSummary
from core.bench.roofline import Reached
from core.engines import choice
from core.errors import WorkbenchError
from pages.parts import session
from pages.parts.charts import duration, metric_cells, per_second
from pages.parts.markdown import plain_text
from pages.parts.run_charts import ACCENT

_QUIET = "#8494A3"
_CONFIG = {"displayModeBar": False}
_MOST_POINTS = 16
_HEIGHT = 300
_HELP = (
    "A step of decoding must read all weights once, and the keys and values of every request in it; what it "
    "computes grows with the requests. The slower of the two is the limit (the roofline of Williams et al., "
    "2009). Time that reading prompts must take is left out. 100% is out of reach; small models, whose steps "
    "are many small pieces of work, stay further away."
)


def draw(view: BenchView, summary: PointSummary) -> None:
    """The card of one point of a benchmark."""
    runtime = session.runtime()
    limit = limits.limit_of(view.environment, runtime.settings, runtime.status())
    if isinstance(limit, Unknown):
        st.caption(plain_text(limit.reason))
        _measure_button(limit.device, "Measure this device")
        return
    found = _reached(view.benchmark_id, summary.number, limit)
    if isinstance(found, Unknown):
        st.caption(plain_text(found.reason))
    else:
        _figures(found)
        others = [
            (point.number, other)
            for point in view.points[:_MOST_POINTS]
            if isinstance(other := _reached(view.benchmark_id, point.number, limit), Reached)
        ]
        st.caption("Reached under the limit, over the requests of a step")
        figure = chart(limit, found, [other for number, other in others if number != summary.number])
        st.plotly_chart(
            figure, config=_CONFIG, key=f"bench:{view.benchmark_id}:{summary.number}:roof",
            alt="Decoding speed reached and possible, over the requests of a step",
        )  # fmt: skip
        st.caption(words(limit, found))
    _measure_button(limit.device, "Measure the device anew")


def chart(limit: Limit, found: Reached, others: list[Reached]) -> go.Figure:
    """The possible tokens/s of decoding over batch size as a line, the points under it."""
    most = max(one.batch for one in (found, *others))
    line = roofline.curve(limit.roof, found.context, most)
    figure = go.Figure(
        [
            go.Scatter(
                x=[batch for batch, _rate in line], y=[rate for _batch, rate in line], name="Possible",
                mode="lines", line={"color": _QUIET, "width": 2},
                hovertemplate="%{x:,.1f} requests a step: %{y:,.0f} tokens/s possible<extra></extra>",
            ),
            _marks(others, "Other points", "circle-open", 8),
            _marks([found], "This point", "circle", 12),
        ]
    )  # fmt: skip
    figure.update_layout(
        height=_HEIGHT,
        margin={"l": 10, "r": 16, "t": 28, "b": 10},
        xaxis={
            "title": "Requests of a step",
            "type": "log",
            "tickvals": [2**power for power in range(math.ceil(math.log2(2 * most)) + 1)],
        },
        yaxis={"title": "Tokens/s while decoding", "rangemode": "tozero", "tickformat": ","},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def words(limit: Limit, found: Reached) -> str:
    """What the limit is made of, with its figures."""
    work, rates = limit.roof.work, limit.rates
    weights, keys = work.weights_bytes(found.batch), found.batch * work.kv_bytes(found.context)
    return plain_text(
        f"On average {found.batch:.1f} requests wrote together, {found.context:,.0f} tokens into their text. "
        f"A step then reads {weights / 1e6:,.0f} MB of weights and {keys / 1e6:,.0f} MB of keys and values. "
        f"{rates.device} moves {rates.bandwidth / 1e9:,.1f} GB/s and multiplies matrices at "
        f"{limit.roof.flops / 1e9:,.0f} GFLOP/s, measured on {rates.measured_at[:10]}. The whole point, "
        f"prompts included, needs {duration(found.least_s)} at least and took {duration(found.wall_s)}."
    )


def _marks(points: list[Reached], name: str, symbol: str, size: int) -> go.Scatter:
    return go.Scatter(
        x=[one.batch for one in points], y=[one.tokens_per_s for one in points], name=name, mode="markers",
        marker={"color": ACCENT, "size": size, "symbol": symbol}, showlegend=bool(points),
        customdata=[one.share for one in points],
        hovertemplate="%{x:,.1f} requests a step: %{y:,.0f} tokens/s, %{customdata:.0%} of possible"
        "<extra></extra>",
    )  # fmt: skip


def _figures(found: Reached) -> None:
    st.markdown(f"**{found.words}.**", help=_HELP)
    rows = (
        ("Decoding reached", f"{per_second(found.tokens_per_s)} tok/s", None),
        (
            "Possible",
            f"{per_second(found.possible)} tok/s",
            "At this batch size and context, on this device.",
        ),
        (
            "Of the limit",
            f"{found.share:.0%}",
            "Above 100% where the weights stay in the processor's caches, or the device was measured while "
            "something else ran.",
        ),
        ("With prompts", f"{found.whole_share:.0%}", "Least time for all work of the point / time it took."),
    )
    for place, (title, value, help) in zip(metric_cells(len(rows), 150), rows, strict=True):
        place.metric(title, value, help=help)


@st.cache_data(max_entries=64, show_spinner=False)
def _found(benchmark_id: str, number: int, measured_at: str, _limit: Limit) -> Reached | Unknown:
    try:
        return limits.reached(session.benchmarks().point(benchmark_id, number), _limit)
    except WorkbenchError as error:
        return Unknown(str(error))


def _reached(benchmark_id: str, number: int, limit: Limit) -> Reached | Unknown:
    return _found(benchmark_id, number, limit.rates.measured_at, limit)


def _measure_button(device: str | None, title: str) -> None:
    """Offered where the engine that is loaded computes on that device."""
    status = session.runtime().status()
    if device is None or status.info is None or status.spec is None:
        return
    here = files.environment(status.info, status.spec, choice.this_machine())
    if device_rates.device_of(here) != device:
        return
    if st.button(
        title, icon=":material/speed:", type="tertiary", key=f"bench:measure-device:{device}",
        help="Copies memory and multiplies matrices for about 20 seconds, while nothing else runs.",
    ):  # fmt: skip
        try:
            with st.spinner("Measuring the device, about 20 s"):
                device_rates.measure(session.runtime())
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            st.rerun()
