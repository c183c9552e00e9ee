"""The microscope's arithmetic, against a plain reckoning of the same rules; its page, on scripted answers."""

from __future__ import annotations

import asyncio
import math
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from core import microscope
from core.engines.scripted import ScriptedEngine
from core.errors import ParameterError
from core.microscope import CUTTERS, NOT_EXACT, Row, reshape
from core.settings import Settings
from core.types import Request, TokenPiece
from pages.parts import microscope as part
from pages.parts import session
from pages.parts.microscope_chart import bars, visible

VOCABULARY = 40
LOGITS = st.lists(
    st.integers(-3000, 3000), min_size=VOCABULARY, max_size=VOCABULARY, unique=True
).map(lambda values: np.array(values, np.float32) / 200)  # fmt: skip
IDS = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.005, 0.3, 0.7, 1, 1.6, 5]),
        "top_p": st.sampled_from([0.05, 0.5, 0.9, 0.99, 1]),
        "top_k": st.sampled_from([-1, 0, 1, 2, 5, 39, 40, 400]),
        "min_p": st.sampled_from([0, 0.02, 0.1, 0.5, 1]),
        "repetition_penalty": st.sampled_from([0.7, 1, 1.1, 1.8]),
        "presence_penalty": st.sampled_from([-1.5, 0, 0.4, 2]),
        "frequency_penalty": st.sampled_from([-0.5, 0, 0.3]),
        "logit_bias": st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100, -1.5, 2])),
        "allowed_token_ids": st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
        "min_tokens": st.integers(0, 6),
        "stop_token_ids": st.lists(st.integers(0, VOCABULARY - 1), max_size=3),
    },
)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    return (values - values.max() - math.log(np.exp(values - values.max()).sum())).astype(np.float32)


def plainly(
    logits: np.ndarray, params: dict[str, Any], prompt: list[int], output: list[int]
) -> dict[int, float]:
    """The same rules written down token by token: the chance of each token that is left.

    A token within a hair of a border may fall to either side in 32 bits: such an example is thrown away.
    """
    left = {token: float(score) for token, score in enumerate(logits)}
    if params.get("allowed_token_ids"):
        left = {token: score for token, score in left.items() if token in params["allowed_token_ids"]}
    if len(output) < params.get("min_tokens", 0):
        left = {
            token: score for token, score in left.items() if token not in params.get("stop_token_ids", ())
        }
    assume(left)
    for token, bias in params.get("logit_bias", {}).items():
        if token in left:
            left[token] += bias
    penalty = params.get("repetition_penalty", 1)
    for token in left:
        if token in prompt or token in output:
            left[token] *= 1 / penalty if left[token] > 0 else penalty
        left[token] -= params.get("frequency_penalty", 0) * output.count(token)
        left[token] -= params.get("presence_penalty", 0) * (token in output)
    temperature = params.get("temperature", 1)
    ranked = sorted(left, key=lambda token: -left[token])
    assume(all(left[one] - left[two] > 1e-4 for one, two in pairwise(ranked)))
    if temperature == 0:
        return {ranked[0]: 1.0}
    left = {token: left[token] / max(temperature, 0.01) for token in ranked}
    least = max(left.values()) + math.log(params.get("min_p", 0) or 1e-300)
    assume(all(abs(score - least) > 1e-3 for score in left.values()) or params.get("min_p") == 1)
    ranked = [token for token in ranked if left[token] >= least]
    if params.get("top_k", 0) > 0:
        ranked = ranked[: params["top_k"]]
    chances = chances_of({token: left[token] for token in ranked})
    if params.get("top_p", 1) < 1:
        before = 0.0
        nucleus = []
        for token in ranked:
            assume(abs(before - params["top_p"]) > 1e-5)
            if before < params["top_p"]:
                nucleus.append(token)
            before += chances[token]
        ranked = nucleus
    return chances_of({token: left[token] for token in ranked})


def chances_of(scores: dict[int, float]) -> dict[int, float]:
    highest = max(scores.values())
    total = math.fsum(math.exp(score - highest) for score in scores.values())
    return {token: math.exp(score - highest) / total for token, score in scores.items()}


@settings(max_examples=250, deadline=None)
@given(LOGITS, PARAMS, IDS, IDS)
def test_every_parameter_does_what_its_rule_says(
    logits: np.ndarray, params: dict[str, Any], prompt: list[int], output: list[int]
) -> None:
    expected = plainly(logits, params, prompt, output)
    shaped = reshape(log_softmax(logits), params, prompt, output, logits=logits)
    wanted = np.array([expected.get(token, 0.0) for token in range(VOCABULARY)])
    np.testing.assert_allclose(shaped.probabilities, wanted, atol=1e-5)


@settings(deadline=None)
@given(LOGITS, PARAMS, IDS, IDS)
def test_what_is_cut_has_no_chance_and_what_is_kept_has_all_of_it(
    logits: np.ndarray, params: dict[str, Any], prompt: list[int], output: list[int]
) -> None:
    try:
        shaped = reshape(log_softmax(logits), params, prompt, output, logits=logits)
    except ParameterError:
        assume(False)
    assert shaped.probabilities.sum() == pytest.approx(1)
    assert not shaped.probabilities[shaped.cut_by > 0].any()
    assert shaped.mass_cut == pytest.approx(sum(cut.mass for cut in shaped.cuts()))
    assert sum(cut.tokens for cut in shaped.cuts()) == np.count_nonzero(shaped.cut_by)
    assert {CUTTERS[number] for number in np.unique(shaped.cut_by)} <= {None, *params}
    assert [cut.parameter for cut in shaped.cuts()] == [
        name for name in CUTTERS if name in {cut.parameter for cut in shaped.cuts()}
    ]


def test_each_cut_is_put_down_to_the_parameter_that_acted_first() -> None:
    logprobs = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], np.float32))
    params = {"min_p": 0.05, "top_k": 4, "top_p": 0.8}
    shaped = reshape(logprobs, params)
    assert [shaped.cutter(token) for token in range(6)] == [None, None, None, "top_p", "top_k", "min_p"]
    assert shaped.tokens_kept == 3
    assert shaped.mass_cut == pytest.approx(0.15)
    np.testing.assert_allclose(shaped.probabilities[:3], np.array([0.4, 0.3, 0.15]) / 0.85, rtol=1e-6)
    assert shaped.entropy_before == pytest.approx(2.045, abs=0.001)
    assert shaped.entropy_after == pytest.approx(1.484, abs=0.001)


def test_tokens_as_likely_as_the_last_of_top_k_stay() -> None:
    logprobs = np.log(np.array([0.4, 0.2, 0.2, 0.2], np.float32))
    assert reshape(logprobs, {"top_k": 2}).tokens_kept == 4


def test_without_parameters_the_model_has_its_own_way() -> None:
    logprobs = log_softmax(np.linspace(-3, 3, 50).astype(np.float32))
    shaped = reshape(logprobs, {})
    np.testing.assert_allclose(shaped.probabilities, np.exp(logprobs), rtol=1e-5)
    assert shaped.tokens_kept == 50
    assert shaped.cuts() == ()
    assert shaped.mass_cut == 0


def test_a_token_that_the_model_never_writes_is_not_called_cut() -> None:
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array([0.5, 0.3, 0.2, 0], np.float32))
    shaped = reshape(logprobs, {"top_k": 2})
    assert [shaped.cutter(token) for token in range(4)] == [None, None, "top_k", None]
    assert list(shaped.kept) == [True, True, False, False]


def test_the_end_is_forbidden_until_min_tokens() -> None:
    logprobs = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    shaped = reshape(logprobs, {"min_tokens": 2}, [], [1], end_ids=[0])
    assert shaped.cutter(0) == "min_tokens"
    assert reshape(logprobs, {"min_tokens": 2}, [], [1, 1], end_ids=[0]).cutter(0) is None


def test_impossible_parameters_say_what_is_wrong() -> None:
    logprobs = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    with pytest.raises(ParameterError, match="no token to choose from"):
        reshape(logprobs, {"allowed_token_ids": [0], "min_tokens": 1}, end_ids=[0])
    with pytest.raises(ParameterError, match="logit_bias names token 7; the vocabulary has 3 tokens"):
        reshape(logprobs, {"logit_bias": {7: 1.0}})


def test_the_rows_are_those_likely_before_or_now_in_the_order_of_before() -> None:
    logprobs = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], np.float32))
    shaped = reshape(logprobs, {"logit_bias": {5: 5.0}, "top_k": 2})
    rows = microscope.top(shaped, 3, also=[4, 99])
    assert [row.token_id for row in rows] == [0, 1, 4, 5]
    assert [row.cut_by for row in rows] == [None, "top_k", "top_k", None]
    assert rows[0].own == pytest.approx(0.4)
    assert rows[-1].chance > 0.7


# -- the logits behind the log-probabilities ----------------------------------------


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)


def as_float16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


ROUNDED = {"bfloat16": as_bfloat16, "float16": as_float16}


@pytest.mark.parametrize("dtype", ROUNDED)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.floats(-1, 1), st.floats(1.5, 5))
def test_16_bit_logits_are_found_where_they_lie_on_both_sides_of_0(
    dtype: str, seed: int, middle: float, spread: float
) -> None:
    logits = ROUNDED[dtype](np.random.default_rng(seed).normal(middle * spread, spread, 30_000))
    found = microscope.logits_of(log_softmax(logits), dtype)
    assert found is not None
    np.testing.assert_allclose(found, logits, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(-300, 300), st.floats(0.5, 5), st.sampled_from([100, 4_000]))
def test_logits_are_never_found_wrongly(seed: int, middle: float, spread: float, size: int) -> None:
    """Few tokens, or all on one side of 0, or 32 bits: then there is no answer rather than a wrong one."""
    draw = np.random.default_rng(seed).normal(middle, spread, size)
    for dtype, rounded in ROUNDED.items():
        found = microscope.logits_of(log_softmax(rounded(draw)), dtype)
        if found is not None:
            np.testing.assert_allclose(found, rounded(draw), atol=2e-4)
        assert microscope.logits_of(log_softmax(draw), dtype) is None
        assert microscope.logits_of(log_softmax(rounded(draw)), "float32") is None


def test_the_repetition_penalty_needs_the_logits() -> None:
    generator = np.random.default_rng(3)
    logits = as_bfloat16(generator.normal(0, 4, 5_000))
    seen = list(range(0, 5_000, 3))
    params = {"repetition_penalty": 1.3}
    found = microscope.logits_of(log_softmax(logits), "bfloat16")
    shaped = reshape(log_softmax(logits), params, seen, logits=found)
    assert not np.allclose(shaped.probabilities, reshape(log_softmax(logits), {}).probabilities)
    exact = reshape(log_softmax(logits), params, seen, logits=logits).probabilities
    np.testing.assert_allclose(shaped.probabilities, exact, rtol=1e-5)
    with pytest.raises(ParameterError, match="only their differences are known"):
        reshape(log_softmax(logits), params, seen)


# -- the part of the page -----------------------------------------------------------


def _page() -> None:
    import streamlit as st

    from core.types import Message
    from pages.parts import session
    from pages.parts.microscope import microscope

    if st.session_state.get("load", True):
        session.runtime().ensure_loaded()
        session.runtime().wait_ready(10)
    params = st.session_state.get("params", {"temperature": 0.7, "logit_bias": {3: 2.0}})
    answer = st.session_state.get("answer", " Paris is one")
    chosen = microscope("lens", [Message("user", "Name a city.")], answer, params=params)
    if chosen is not None:
        st.session_state["chosen"] = chosen


@pytest.fixture
def page(workspace: Settings) -> AppTest:
    return AppTest.from_function(_page, default_timeout=20)


def metric(page: AppTest, label: str) -> str:
    (found,) = [metric.value for metric in page.metric if metric.label == label]
    return found


def test_the_microscope_follows_its_sliders_and_gives_their_values_once(page: AppTest) -> None:
    page.run()
    assert not page.exception
    assert page.slider(key="lens:temperature").value == 0.7
    assert metric(page, "Tokens kept") == "512"
    page.slider(key="lens:top_k").set_value(5).run()
    assert metric(page, "Tokens kept") == "5"
    assert any("`top_k` 507 tokens" in caption.value for caption in page.caption)
    page.slider(key="lens:temperature").set_value(0.0).run()
    assert metric(page, "Tokens kept") == "1"
    assert metric(page, "Entropy") == "0.00 bits"
    assert "chosen" not in page.session_state
    page.button(key="lens:use").click().run()
    assert page.session_state["chosen"] == {"temperature": 0.0, "logit_bias": {3: 2.0}, "top_k": 5}
    del page.session_state["chosen"]
    page.run()
    assert "chosen" not in page.session_state
    page.button(key="lens:reset").click().run()
    assert metric(page, "Tokens kept") == "512"


def test_the_position_moves_along_the_answer(page: AppTest) -> None:
    page.run()
    assert page.slider(key="lens:position").max == 3
    entropy = metric(page, "Entropy")
    assert page.text[0].value.endswith("<assistant>\n▏")
    page.slider(key="lens:position").set_value(2).run()
    assert page.text[0].value.endswith("<assistant>\n Paris is▏")
    assert metric(page, "Entropy") != entropy
    assert any("The answer has “␣one” here" in caption.value for caption in page.caption)


def test_the_model_is_asked_once_for_a_position(page: AppTest) -> None:
    page.run()
    asked = session.runtime().status().stats.prompt_tokens
    page.slider(key="lens:min_p").set_value(0.2).run()
    page.run()
    assert session.runtime().status().stats.prompt_tokens == asked
    page.slider(key="lens:position").set_value(1).run()
    assert session.runtime().status().stats.prompt_tokens > asked


def test_a_penalty_that_can_not_be_reckoned_is_switched_off_and_says_why(page: AppTest) -> None:
    page.session_state["params"] = {"repetition_penalty": 1.2}
    page.run()
    slider = page.slider(key="lens:repetition_penalty")
    assert (slider.disabled, slider.value) == (True, 1.0)
    page.button(key="lens:use").click().run()
    assert page.session_state["chosen"] == {"repetition_penalty": 1.2}
    assert any(caption.value == NOT_EXACT for caption in page.caption)


def test_a_busy_engine_is_not_waited_for(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    answer_at_once = ScriptedEngine.next_logprobs

    async def answer_when_free(engine: ScriptedEngine, request: Request) -> np.ndarray:
        await asyncio.to_thread(free.wait, 30)
        return await answer_at_once(engine, request)

    monkeypatch.setattr(ScriptedEngine, "next_logprobs", answer_when_free)
    monkeypatch.setattr(part, "_PATIENCE_S", 0)
    page.run()
    assert any(caption.value.startswith("The engine is busy") for caption in page.caption)
    assert not page.metric
    free.set()
    monkeypatch.setattr(part, "_PATIENCE_S", 10)
    page.run()
    assert metric(page, "Tokens kept") == "512"


def test_a_place_beyond_the_context_is_refused_and_the_others_go_on(page: AppTest) -> None:
    page.session_state["answer"] = " word" * 8_200
    page.run()
    page.slider(key="lens:position").set_value(8_200).run()
    assert not page.exception
    assert "the context holds 8192" in page.info[0].value
    page.slider(key="lens:position").set_value(1).run()
    assert not page.info
    assert metric(page, "Tokens kept") == "512"


def test_what_it_leaves_out_is_said(page: AppTest) -> None:
    page.session_state["params"] = {"bad_words": ["x"], "beam_width": 4}
    page.run()
    assert any(caption.value.startswith("Mind that what `bad_words` forbid") for caption in page.caption)


def test_without_an_engine_it_says_so(page: AppTest) -> None:
    page.session_state["load"] = False
    page.run()
    assert [info.value for info in page.info] == ["No model is loaded\\. Load one first\\."]


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" the", "␣the"), ("\n\n", "⏎⏎"), ("a b", "a b"), ("", "(no text)"), ("\x00", "�"), ("  ", "␣␣")],
)
def test_white_space_is_seen(text: str, shown: str) -> None:
    assert visible(TokenPiece(1, text)) == shown


def test_a_token_is_text_in_the_picture_whatever_it_says() -> None:
    rows = [Row(1, 0.6, 0.7, None), Row(2, 0.3, 0.0, "top_k")]
    figure = bars(rows, [TokenPiece(1, "<b>&"), TokenPiece(2, " x")], (7, 0.1, 0.3), written=2)
    assert list(figure.layout.yaxis.ticktext) == ["&lt;b&gt;&amp;", "<b>▸ ␣x</b>", "<i>7 others</i>"]
    assert list(figure.data[-1].text) == ["60.0% → 70.0%", "30.0% → <b>cut by top_k</b>", "10.0% → 30.0%"]
