"""The microscope against vLLM itself: what its sampler hands out, and how often it draws what."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import microscope
from core.microscope import reshape
from core.runtime import Runtime
from core.types import Request

pytestmark = pytest.mark.engine

_HELPER = Path(__file__).parent / "processed_logprobs.py"
_TOKENS = 3
_END = 2  # SmolLM2's <|im_end|>
PROMPTS = {
    # "The capital of France is", "Once upon a time, there was a little"
    "sure": [504, 3575, 282, 4649, 314],
    "open": [6403, 1980, 253, 655, 28, 665, 436, 253, 1838],
}
SETS: dict[str, dict[str, Any]] = {
    "none": {},
    "cool": {"temperature": 0.7},
    "cold": {"temperature": 0.005},
    "hot, top_p": {"temperature": 1.5, "top_p": 0.9},
    "small top_p": {"top_p": 0.35},
    "top_k": {"top_k": 20},
    "min_p": {"min_p": 0.05},
    "all three": {"temperature": 1.3, "min_p": 0.01, "top_k": 40, "top_p": 0.8},
    "repetition": {"repetition_penalty": 1.3},
    "repetition below 1": {"repetition_penalty": 0.8, "temperature": 0.9},
    "presence": {"presence_penalty": 1.5, "temperature": 1.4},
    "frequency": {"frequency_penalty": 1.2, "presence_penalty": -0.7},
    "bias": {"logit_bias": {"260": 6.0, "253": -100.0}, "top_k": 8},
    "allowed": {"allowed_token_ids": [260, 253, 1838, 314, 28, 7042], "temperature": 2.0},
    "not yet the end": {"min_tokens": 2, "logit_bias": {str(_END): 30.0}, "ignore_eos": True},
    "everything": {
        "temperature": 0.9, "top_k": 60, "top_p": 0.95, "min_p": 0.002, "repetition_penalty": 1.15,
        "presence_penalty": 0.4, "frequency_penalty": 0.3, "logit_bias": {"260": 1.5},
    },
    "greedy": {"temperature": 0, "repetition_penalty": 1.4},
}  # fmt: skip
CASES = [(prompt, name) for prompt in PROMPTS for name in SETS]


@pytest.fixture(scope="module")
def sampler(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What vLLM's sampler starts from (logits) and ends with, for every case: the same draws twice."""
    folder = tmp_path_factory.mktemp("sampler")
    common = {"seed": 11, "max_tokens": _TOKENS}
    cases = [{"prompt_ids": PROMPTS[prompt], "params": SETS[name] | common} for prompt, name in CASES]
    (folder / "in.json").write_text(json.dumps({"model": str(embedded_model), "cases": cases}))
    with ThreadPoolExecutor(2) as both:  # most of it is loading, on one core
        return tuple(both.map(_ask, ("raw_logits", "processed_logprobs"), (folder, folder)))


def _ask(mode: str, folder: Path) -> Any:
    target = folder / f"{mode}.npz"
    command = [sys.executable, str(_HELPER), mode, str(folder / "in.json"), str(target)]
    with (
        (folder / f"{mode}.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as helper,
    ):
        try:
            status = helper.wait(280)
        except BaseException:
            os.killpg(helper.pid, signal.SIGKILL)  # vLLM's own processes outlive it otherwise
            raise
    assert status == 0, (folder / f"{mode}.log").read_text(errors="replace")[-2000:]
    return np.load(target)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """As vLLM gives it: float32."""
    rest = logits - logits.max()
    return rest - np.log(np.exp(rest).sum(dtype=np.float32))


@pytest.mark.timeout(600)  # the first one makes the two engines
@pytest.mark.parametrize(("prompt", "name"), CASES)
def test_the_chances_are_those_of_the_sampler(sampler: tuple[Any, Any], prompt: str, name: str) -> None:
    raw, processed = sampler
    number = CASES.index((prompt, name))
    written = raw[str(number)].tolist()
    assert written == processed[str(number)].tolist()  # the same draws: the distributions are of one text
    for place, token in enumerate(written):
        logits = raw[f"{number}:{place}"]
        logprobs = log_softmax(logits)
        found = microscope.logits_of(logprobs, "bfloat16")
        np.testing.assert_allclose(found, logits, atol=1e-5)
        params = SETS[name] | {"ignore_eos": True}
        shaped = reshape(logprobs, params, PROMPTS[prompt], written[:place], logits=found, end_ids=[_END])
        theirs = processed[f"{number}:{place}"].astype(np.float64)
        assert np.isfinite(theirs[token])
        if params.get("temperature") == 0:  # vLLM tells the penalized distribution; it takes the first
            assert np.flatnonzero(shaped.kept) == [token] == [theirs.argmax()]
            continue
        assert shaped.tokens_kept == np.count_nonzero(np.isfinite(theirs))
        np.testing.assert_allclose(
            np.sort(shaped.probabilities), np.sort(np.exp(theirs)), atol=2e-6, rtol=1e-4
        )
        # which of equally likely tokens top_p leaves in is chance: only there may we differ
        differing = shaped.kept != np.isfinite(theirs)
        chances = np.maximum(shaped.probabilities, np.exp(theirs))
        assert not differing.any() or np.ptp(chances[differing]) <= 1e-6
        np.testing.assert_allclose(
            shaped.probabilities[~differing], np.exp(theirs[~differing]), atol=2e-6, rtol=1e-4
        )


def test_tokens_come_as_often_as_the_microscope_says(engine_runtime: Runtime) -> None:
    engine, draws = engine_runtime.engine, 400
    prompt = engine.encode(["Once upon a time, there was a little"])[0]
    params = {
        "temperature": 1.2,
        "top_k": 12,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "logit_bias": {260: 2.0},
    }
    logprobs = engine_runtime.run(engine.next_logprobs(Request(id="microscope", prompt=prompt)))
    logits = microscope.logits_of(logprobs, engine.info.dtype)
    assert logits is not None
    shaped = reshape(logprobs, params, prompt, logits=logits)
    assert 3 <= shaped.tokens_kept <= 12

    async def draw() -> list[int]:
        requests = [
            Request(
                id=f"draw-{seed}", prompt=prompt, params={**params, "seed": seed, "max_tokens": 1},
                top_logprobs=0,
            )
            for seed in range(draws)
        ]  # fmt: skip
        answers = await asyncio.gather(*map(engine.complete, requests))
        return [answer.logprobs[0].token_id for answer in answers]

    drawn = np.bincount(engine_runtime.run(draw()), minlength=len(logprobs))
    assert not drawn[~shaped.kept].any()
    expected = draws * shaped.probabilities
    # six standard deviations, and a count or two for the rarest
    bound = 6 * np.sqrt(expected * (1 - shaped.probabilities)) + 2
    assert (np.abs(drawn - expected) <= bound).all()
