"""Before a comparison: what is asked, under which parameter sets, how often; and what that will take."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from pydantic import ValidationError

from core.comparing.spec import ComparisonSpec, PromptItem, SetSpec
from core.errors import ParameterError, WorkbenchError
from pages.parts import compare_draft as draft
from pages.parts import session
from pages.parts.charts import duration
from pages.parts.compare_header import show
from pages.parts.compare_prompts import prompts_form
from pages.parts.compare_sets import sets_form
from pages.parts.compare_table import name_of, table_of
from pages.parts.compare_use import remember_table
from pages.parts.markdown import plain_text

_MOST_SAMPLES = 20
_ALTERNATIVES = 5


def draw() -> None:
    """The form. What is wrong with it is said where Run is, which stays in sight."""
    key, initial = draft.key(), draft.initial()
    spec, problem = None, ""
    st.subheader("What is asked", anchor=False)
    items = prompts_form(key, initial)
    st.subheader("Parameter sets", anchor=False)
    try:
        sets = sets_form(key, initial, list(items[0].values) if items else [])
    except ParameterError as error:
        sets, problem = (), str(error)
    with st.expander("Samples, seeds and name", icon=":material/casino:"):
        options = _options(key, initial)
    if not problem:
        spec, problem = _spec(items, sets, options)
    with st.bottom:
        _go(spec, problem)


def _options(key: str, initial: ComparisonSpec | None) -> dict[str, object]:
    seeds = initial.seeds if initial else (1,)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        count = st.number_input(
            "Answers to each prompt", 1, _MOST_SAMPLES, len(seeds), key=f"{key}:samples", width=215,
            persist_state="session",
            help="Several answers show how much a set varies, and make differences surer.",
        )  # fmt: skip
        words = st.text_input(
            "Seeds", ", ".join(str(seed) for seed in seeds if seed is not None), key=f"{key}:seeds",
            width=220, placeholder="New each time", persist_state="session",
            help="One number: the first answer's; the others count on from it. Or a number for each, with "
            "commas between. Empty: new each time, and a repeat differs.",
        )  # fmt: skip
        name = st.text_input(
            "Name", initial.name if initial else "", key=f"{key}:name", width=300, persist_state="session",
            placeholder=name_of(key) or "The first prompt's words",
        )  # fmt: skip
    keep = st.toggle(
        "Keep the probability of each token", initial is not None and initial.top_logprobs is not None,
        key=f"{key}:tokens", persist_state="session",
        help="Then an answer can be shown token by token, with what else could have come.",
    )  # fmt: skip
    return {
        "count": count,
        "seeds": words,
        "name": name.strip() or name_of(key),
        "top_logprobs": 5 if keep else None,
    }


def seeds_of(words: str, count: int) -> tuple[int | None, ...]:
    """A seed for each of `count` answers from what was entered. Raises ParameterError."""
    parts = words.replace("，", ",").replace(",", " ").split()
    if not parts:
        return (None,) * count
    try:
        seeds = tuple(int(part) for part in parts)
    except ValueError:
        raise ParameterError(f"The seeds {words!r} are not whole numbers.", hint="Such as 1, 2, 3.") from None
    if len(seeds) == 1:
        return tuple(range(seeds[0], seeds[0] + count))
    if len(seeds) != count:
        raise ParameterError(
            f"There are {len(seeds)} seeds for {count} answers to each prompt.",
            hint="Give one seed for each, or the first one alone.",
        )
    return seeds


def _spec(
    items: Sequence[PromptItem], sets: Sequence[SetSpec], options: dict[str, object]
) -> tuple[ComparisonSpec | None, str]:
    """The specification, or what is missing or wrong."""
    if not items:
        return None, "Say what is asked: write a prompt, or choose some."
    try:
        return (
            ComparisonSpec(
                name=options["name"],
                prompts=tuple(items),
                sets=tuple(sets),
                seeds=seeds_of(options["seeds"], options["count"]),
                top_logprobs=options["top_logprobs"],
            ),
            "",
        )
    except ValidationError as error:
        return None, error.errors(include_url=False)[0]["msg"]
    except WorkbenchError as error:
        return None, str(error)


def _go(spec: ComparisonSpec | None, problem: str) -> None:
    """The counter, and Run."""
    with st.container(horizontal=True, vertical_alignment="center"):
        run = st.button(
            "Run", type="primary", icon=":material/play_arrow:", disabled=spec is None, key="compare:run",
            help="Ctrl+Enter", shortcut="Ctrl+Enter",
        )  # fmt: skip
        if spec is None:
            st.caption(f":material/info: {plain_text(problem)}")
        else:
            st.markdown(_counter(spec))
    if run and spec is not None:
        try:
            comparison_id = session.comparisons().start(spec)
        except WorkbenchError as error:
            st.error(plain_text(str(error)))
        else:
            remember_table(comparison_id, table_of(draft.key()))
            show(comparison_id)
            st.rerun()


def _counter(spec: ComparisonSpec) -> str:
    estimate = session.comparisons().estimate(spec)
    words = f"**{plain_text(spec.words).replace(' x ', ' × ')}**"
    if estimate.seconds is not None:
        return f"{words}, {'at most' if estimate.is_bound else 'about'} {duration(max(1, estimate.seconds))}"
    return f"{words}, at most {estimate.output_tokens:,} tokens"
