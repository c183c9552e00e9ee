"""How the requests of a serving benchmark arrive, and what a good one may take."""

from __future__ import annotations

import streamlit as st

from core.bench.spec import BenchSpec, Load, Sweep
from core.errors import ParameterError
from pages.parts.bench_workload import number

_WAYS = {"rates": "Requests per second", "concurrency": "Requests at once", "sweep": "Sweep to the knee"}
_ABOUT = {
    "rates": "New requests come at this rate, whether the engine keeps up or not: as from many users.",
    "concurrency": "So many users, each of whom asks again as soon as the answer is there.",
    "sweep": "More and more load, until more of it brings no more tokens per second.",
}
_ARRIVALS = {"poisson": "At random (Poisson)", "constant": "Evenly", "gamma": "In bursts (gamma)"}
_OVER = {"max_concurrency": "requests at once", "request_rate": "requests per second"}
_GOALS = {
    "ttft": ("TTFT (ms)", "Time to first token: request sent to its first token."),
    "tpot": ("TPOT (ms)", "Time per output token: (E2EL - TTFT) / (output tokens - 1)."),
    "e2el": ("E2EL (ms)", "End-to-end latency: request sent to its last token."),
}
_ENDLESS = ("inf", "all", "max")


def load_form(key: str, initial: BenchSpec | None) -> tuple[tuple[Load, ...], Sweep | None]:
    """Draw the choice and its fields. Raises ParameterError for numbers that can't be read."""
    given = initial.loads[0] if initial and initial.loads else Load(max_concurrency=8)
    way = "concurrency" if given.request_rate is None and given.max_concurrency else "rates"
    if initial and initial.sweep:
        way = "sweep"
    chosen = st.segmented_control(
        "Load", list(_WAYS), format_func=_WAYS.get, default=way, required=True, key=f"{key}:load",
        persist_state="session",
    )  # fmt: skip
    st.caption(_ABOUT[chosen])
    if chosen == "sweep":
        return _sweep(f"{key}:sweep", initial, given)
    loads = initial.loads if initial else ()
    if chosen == "concurrency":
        words = ", ".join(str(load.max_concurrency) for load in loads if load.max_concurrency)
        entered = st.text_input(
            "Requests at once", words or "1, 8", key=f"{key}:concurrency", width=360, persist_state="session",
            help="One number, or several with commas between: each is measured for itself.",
        )  # fmt: skip
        return tuple(Load(max_concurrency=int(value)) for value in numbers(entered, whole=True)), None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = ", ".join(_rate_words(load.request_rate) for load in loads) if way == "rates" else ""
        entered = st.text_input(
            "Requests per second", words or "1, 4", key=f"{key}:rates", width=360, persist_state="session",
            help="One number, or several with commas between: each is measured for itself. inf: all at once.",
        )  # fmt: skip
        most = number(
            f"{key}:most", "At once, at most", given.max_concurrency if way == "rates" else None, 1, None,
            "A request beyond that waits for a place before it is sent. Empty: no limit.",
            placeholder="no limit",
        )  # fmt: skip
        arrivals, burstiness = _arrivals(key, given)
    rates = numbers(entered, whole=False)
    return (
        tuple(
            Load(request_rate=rate, max_concurrency=most, arrivals=arrivals, burstiness=burstiness)
            for rate in rates
        ),
        None,
    )


def _arrivals(key: str, given: Load) -> tuple[str, float]:
    arrivals = st.selectbox(
        "They come", list(_ARRIVALS), list(_ARRIVALS).index(given.arrivals), format_func=_ARRIVALS.get,
        key=f"{key}:arrivals", width=200, persist_state="session",
    )  # fmt: skip
    if arrivals != "gamma":
        return arrivals, 1.0
    first = given.burstiness if given.arrivals == "gamma" else 0.5
    burstiness = number(
        f"{key}:burstiness", "Burstiness", first, 0.01, 100.0,
        "Below 1: in bursts; 1: as Poisson; above: more even.",
    )  # fmt: skip
    return arrivals, burstiness


def _sweep(key: str, initial: BenchSpec | None, like: Load) -> tuple[tuple[Load, ...], Sweep | None]:
    given = (initial.sweep if initial else None) or Sweep(over="max_concurrency")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        over = st.selectbox(
            "Over", list(_OVER), list(_OVER).index(given.over), format_func=_OVER.get, key=f"{key}:over",
            width=200, persist_state="session",
        )  # fmt: skip
        start = number(f"{key}:start", "From", given.start, 0.01, format="%g")
        factor = number(
            f"{key}:factor", "Factor", given.factor, 1.05, None, "Each load is so many times the one before.",
            format="%g",
        )  # fmt: skip
        most = number(f"{key}:most", "Points at most", given.most_points, 2, 64)
        gain = number(
            f"{key}:gain", "Least gain (%)", given.least_gain * 100, 0.0, 99.0,
            "The knee: where a step brings less than this much more output tokens per second.", format="%g",
        )  # fmt: skip
        arrivals, burstiness = ("poisson", 1.0)
        if over == "request_rate":
            arrivals, burstiness = _arrivals(key, like)
    sweep = Sweep(over=over, start=start, factor=factor, most_points=most, least_gain=gain / 100)
    return (Load(arrivals=arrivals, burstiness=burstiness),), sweep


def numbers(words: str, *, whole: bool, what: str = "load") -> tuple[float | None, ...]:
    """The numbers above 0 in what was entered; None for "inf". Raises ParameterError."""
    parts = words.replace("，", ",").replace(",", " ").split()
    if not parts:
        raise ParameterError(f"No {what} is given.", hint="Give one number, or several.")
    found: list[float | None] = []
    for part in parts:
        if part.lower() in _ENDLESS and not whole:
            found.append(None)
            continue
        try:
            value = int(part) if whole else float(part)
        except ValueError:
            kind = "whole number" if whole else "number"
            raise ParameterError(f"The {what} {part!r} is not a {kind}.", hint="Such as 8.") from None
        if not 0 < value < float("inf"):
            raise ParameterError(f"The {what} {part!r} is not a number above 0.", hint="Such as 8.")
        found.append(value)
    return tuple(dict.fromkeys(found))


def goals_form(key: str, initial: BenchSpec | None) -> dict[str, float]:
    """Draw the fields of goodput: the most milliseconds that a good request may take."""
    given = initial.goodput if initial else {}
    found = {}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for name, (label, help) in _GOALS.items():
            value = number(
                f"{key}:goal-{name}", label, given.get(name), 0.1, None, help, placeholder="no goal"
            )
            if value is not None:
                found[name] = value
    st.caption("Goodput counts the requests per second that reach all of these.")
    return found


def _rate_words(rate: float | None) -> str:
    return "inf" if rate is None else f"{rate:g}"
