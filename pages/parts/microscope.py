"""The sampling microscope: one position of a text, and what the parameters do to the next token there.

The model is asked once for its own distribution; the sliders then only reshape it
(`core.microscope`), so that moving one asks for nothing and redraws at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from core import chat_templates, sampling
from core import microscope as maths
from core.engines.base import Engine
from core.errors import WorkbenchError
from core.prompt_styles import CHAT, Wrapper
from core.types import LoraAdapter, Message, Priority, Request, TokenLogprob
from pages.parts import session
from pages.parts.markdown import plain_text
from pages.parts.microscope_chart import bars, percent, visible

SLIDERS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_NEEDS_LOGITS = "repetition_penalty"
_NOT_SHOWN = {
    "bad_words": "what `bad_words` forbid is not taken off here",
    "structured_outputs": "what `structured_outputs` forbid is not taken off here",
    "beam_width": "beam search does not draw by these chances",
}
_LABELS = {"top_p": "Top p", "top_k": "Top k", "min_p": "Min p"}
_PATIENCE_S = 3.0
_POLL_S = 0.3
_KEPT = 8  # distributions that a browser session holds: about 1 MB each
_SHOWN = 20
_TAIL_TOKENS = 48


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the microscope looks: the tokens before, and the one that the answer has there, if any."""

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    written: int | None


@dataclass(frozen=True, slots=True, eq=False)
class _Distribution:
    """The model's own log-probabilities (vocabulary,), and its logits where they could be found."""

    logprobs: np.ndarray
    logits: np.ndarray | None


def microscope(
    key: str,
    prompt: Sequence[Message] | str,
    answer: Sequence[TokenLogprob] | str = "",
    *,
    params: Mapping[str, Any] | None = None,
    style: str = CHAT,
    wrapper: Wrapper | None = None,
    options: Mapping[str, Any] | None = None,
    adapter: str | None = None,
) -> dict[str, Any] | None:
    """Draw the microscope; gives parameters once, after "Use these values" was pressed, otherwise None.

    `prompt`: messages, made a prompt by `style`, `wrapper` and `options` as `chat_templates.fit` does,
    or a text that is taken as it is. `answer`: tokens as the engine gave them, or a text, which is cut
    into tokens anew. `params`: where the sliders start; what has no slider acts, and is given back, as
    it is. `adapter` names the LoRA adapter whose distribution it is. `key` stands for all of it: give
    another one for another set or answer.
    """
    try:
        engine = session.runtime().engine
        if "distribution" in engine.info.cannot:
            st.info(plain_text(engine.info.cannot["distribution"]))
            return None
        start = dict(params or {})
        prompt_ids = _prompt_ids(engine, prompt, start, style, wrapper, options)
        place = _choose_place(key, engine, prompt_ids, _answer_ids(engine, answer))
        read = _read(engine, place, session.adapters().lora(adapter))
    except WorkbenchError as error:
        st.info(plain_text(str(error)))
        return None
    if read is not None:
        _lens(key, engine, place, read, start)
    return st.session_state.pop(f"{key}:chosen", None)


# -- where to look ------------------------------------------------------------------


def _prompt_ids(
    engine: Engine,
    prompt: Sequence[Message] | str,
    params: Mapping[str, Any],
    style: str,
    wrapper: Wrapper | None,
    options: Mapping[str, Any] | None,
) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(engine.encode([prompt], add_special_tokens=True)[0])
    most = params.get("max_tokens") or sampling.BY_NAME["max_tokens"].default
    fitted = chat_templates.fit(prompt, engine, most, style=style, wrapper=wrapper, options=options)
    return fitted.token_ids


def _answer_ids(engine: Engine, answer: Sequence[TokenLogprob] | str) -> tuple[int, ...]:
    if isinstance(answer, str):
        return tuple(engine.encode([answer])[0]) if answer else ()
    return tuple(token.token_id for token in answer)


def _choose_place(key: str, engine: Engine, prompt_ids: tuple[int, ...], answer: tuple[int, ...]) -> _Place:
    position = 0
    if answer:
        widget = f"{key}:position"
        now = min(st.session_state.get(widget, 0), len(answer))
        st.session_state[widget] = now
        position = st.slider(
            "Tokens of the answer before it",
            0,
            len(answer),
            now,
            key=widget,
            persist_state="session",
            help="0 is the answer's first token. The arrow keys move it by one.",
        )
    written = answer[position] if position < len(answer) else None
    before = [*prompt_ids, *answer[:position]][-_TAIL_TOKENS:]
    tail = "".join(piece.text for piece in engine.pieces(before))
    shortened = "…" if len(before) < len(prompt_ids) + position else ""
    st.caption("The model has read this, and chooses the next token:")
    with st.container(border=True):
        st.text(f"{shortened}{tail}▏")
    return _Place(prompt_ids, answer[:position], written)


# -- what the model says there ------------------------------------------------------


def _read(engine: Engine, place: _Place, adapter: LoraAdapter | None) -> _Distribution | None:
    """The distribution at this place, asked for once; None while it is on its way."""
    info = engine.info
    kept: dict[Any, Any] = st.session_state.setdefault("microscope:read", {})
    name = (info.model, info.revision, info.dtype, adapter, place.prompt_ids + place.output_ids)
    future = kept.pop(name, None)
    if future is None or future.cancelled():
        future = session.runtime().spawn(_ask(engine, list(name[-1]), adapter))
    if not future.done():
        with st.spinner("Asking the model…"):
            concurrent.futures.wait([future], _PATIENCE_S)
    if future.done() and future.exception() is not None:
        return future.result()  # it raises, and is not kept: the next run asks again
    kept[name] = future  # the newest last
    for old in list(itertools.islice(kept, max(0, len(kept) - _KEPT))):
        kept.pop(old).cancel()
    if not future.done():
        _waiting(future)
        return None
    return future.result()


async def _ask(engine: Engine, token_ids: list[int], adapter: LoraAdapter | None) -> _Distribution:
    request = Request(
        id=f"microscope-{uuid.uuid4().hex}", prompt=token_ids, priority=Priority.COMPARE, adapter=adapter
    )
    logprobs = await engine.next_logprobs(request)
    # up to half a second for a large vocabulary: not on the loop that serves everybody
    return _Distribution(logprobs, await asyncio.to_thread(maths.logits_of, logprobs, engine.info.dtype))


@st.fragment(run_every=_POLL_S)
def _waiting(future: concurrent.futures.Future[_Distribution]) -> None:
    if future.done():
        st.rerun()
    st.caption("The engine is busy; the distribution comes as soon as it has a moment.")


# -- the sliders and what they do ---------------------------------------------------


@st.fragment
def _lens(key: str, engine: Engine, place: _Place, read: _Distribution, params: dict[str, Any]) -> None:
    """Everything that moves with the sliders, drawn again by itself."""
    defaults = sampling.defaults(engine.info.generation_config) | params
    left, right = st.columns([1, 2], gap="medium")
    with left:
        exact = read.logits is not None
        values = _sliders(key, defaults, exact=exact)
        moved = {name: value for name, value in values.items() if exact or name != _NEEDS_LOGITS}
        chosen = params | {
            name: value for name, value in moved.items() if name in params or value != defaults[name]
        }
        _buttons(key, chosen, defaults)
        missing = [words for name, words in _NOT_SHOWN.items() if params.get(name)]
        if missing:
            st.caption(f"Mind that {', and '.join(missing)}.")
    try:
        shaped = maths.reshape(
            read.logprobs,
            defaults | values,
            place.prompt_ids,
            place.output_ids,
            logits=read.logits,
            end_ids=_end_ids(engine),
        )
    except WorkbenchError as error:
        right.warning(plain_text(str(error)))
        return
    with right:
        _draw(key, engine, place, shaped)
    _figures(shaped)


def _sliders(key: str, defaults: Mapping[str, Any], *, exact: bool) -> dict[str, Any]:
    """The values of all sliders. `exact`: the repetition penalty can be reckoned."""
    values = {}
    for name in SLIDERS:
        row, widget = sampling.BY_NAME[name], f"{key}:{name}"
        number = int if row.kind == "int" else float
        usable = exact or name != _NEEDS_LOGITS
        now = number(st.session_state.get(widget, max(defaults[name], row.low)))
        st.session_state[widget] = now = now if usable else number(row.default)
        values[name] = st.slider(
            _LABELS.get(name) or name.replace("_", " ").capitalize(),
            min(number(row.low), now),
            max(number(row.high), now),
            now,
            number(row.step),
            key=widget,
            help=f"`{name}`: {plain_text(row.help)}",
            disabled=not usable,
            persist_state="session",
        )
        if not usable:
            st.caption(maths.NOT_EXACT)
    return values


def _buttons(key: str, chosen: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    with st.container(horizontal=True):
        if st.button("Use these values", key=f"{key}:use", icon=":material/check:"):
            st.session_state[f"{key}:chosen"] = chosen
            st.rerun()  # the whole page: whoever drew the microscope gets them
        st.button(
            "Reset", key=f"{key}:reset", type="tertiary", icon=":material/restart_alt:",
            on_click=_reset, args=(key, defaults),
        )  # fmt: skip


def _reset(key: str, defaults: Mapping[str, Any]) -> None:
    for name in SLIDERS:
        row = sampling.BY_NAME[name]
        number = int if row.kind == "int" else float
        st.session_state[f"{key}:{name}"] = number(max(defaults[name], row.low))


def _end_ids(engine: Engine) -> list[int]:
    ends = engine.info.generation_config.get("eos_token_id")
    return [token for token in (ends if isinstance(ends, list) else [ends]) if token is not None]


def _draw(key: str, engine: Engine, place: _Place, shaped: maths.Reshaped) -> None:
    vocabulary = len(shaped.own)
    covered = place.written is not None and place.written < vocabulary
    rows = maths.top(shaped, _SHOWN, [place.written] if covered else ())
    pieces = engine.pieces([row.token_id for row in rows])
    left = vocabulary - len(rows)
    rest = (
        left,
        max(0.0, 1 - sum(row.own for row in rows)),
        max(0.0, 1 - sum(row.chance for row in rows)),
    )
    figure = bars(rows, pieces, rest, place.written)
    words = f"Chances of the {len(rows)} likeliest tokens before and after the parameters"
    st.plotly_chart(figure, key=f"{key}:bars", config={"displayModeBar": False}, alt=words)
    if place.written is not None:
        (piece,) = engine.pieces([place.written])
        said = f"The answer has “{visible(piece)}” here"
        if covered:
            own, now = shaped.own[place.written], shaped.probabilities[place.written]
            said += f": {percent(own)} by the model's own account, {percent(now)} with these parameters"
        st.caption(plain_text(f"{said}."))


def _figures(shaped: maths.Reshaped) -> None:
    kept, mass, spread = st.columns(3)
    with kept:
        st.metric("Tokens kept", f"{shaped.tokens_kept:,}")
        st.caption(f"Of {len(shaped.own):,} tokens, so many can still be chosen.")
    with mass:
        st.metric("Cut away", percent(shaped.mass_cut))
        st.caption("The model's own probability of all the tokens that were cut.")
    with spread:
        before, after = shaped.entropy_before, shaped.entropy_after
        st.metric("Entropy", f"{after:.2f} bits", f"{after - before:+.2f} bits", delta_color="off")
        st.caption(
            f"As hard to guess as one of {2**after:,.1f} equally likely tokens; "
            f"the model's own choice: one of {2**before:,.1f}."
        )
    cuts = [f"`{cut.parameter}` {cut.tokens:,} tokens ({percent(cut.mass)})" for cut in shaped.cuts()]
    if cuts:
        st.caption("Cut, in the order in which the engine does it: " + ", then ".join(cuts) + ".")
