"""transformers in the workbench's own loop: what `generate` writes, whoever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import until

from core.engines import hf_backend, hf_sampling
from core.engines.hf_backend import TransformersBackend
from core.engines.hf_sampling import Chooser, choose
from core.engines.tokenizer import Tokenizer
from core.engines.worker_text import Work
from core.errors import EngineLoadError, ModelError, RequestRejected
from core.runtime import Runtime
from core.settings import Settings
from core.types import EngineSpec, Request

PROMPTS = [[11, 12, 13], [400, 22, 23, 24, 25, 26, 27, 28, 29], [31], [900, 42, 43, 44, 45]]
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 128,
    "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SMALL)


def sliding() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**SMALL, sliding_window=6)


def recurrent() -> Any:
    """Its layers keep a state in place of keys and values."""
    from transformers import MambaConfig

    return MambaConfig(
        hidden_size=32, num_hidden_layers=2, vocab_size=1000, state_size=8, initializer_range=0.3
    )


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Tokenizer:
    return Tokenizer("embedded", embedded_model)


def hybrid() -> Any:
    """One layer with attention, one with a state."""
    from transformers import BambaConfig

    return BambaConfig(
        **SMALL, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1,
        mamba_expand=2, attn_rotary_emb=8,
    )  # fmt: skip


@pytest.fixture(params=[llama, sliding, recurrent, hybrid], ids=lambda make: make.__name__)
def backend(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> TransformersBackend:
    return made(request.param(), tokenizer)


def made(config: Any, tokenizer: Tokenizer, context_tokens: int = 128) -> TransformersBackend:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return TransformersBackend(
        model, tokenizer, slots=4, context_tokens=context_tokens, end_ids=frozenset({2})
    )


def generated(backend: TransformersBackend, prompt: list[int], tokens: int) -> list[int]:
    """What `generate` writes, by itself."""
    import torch

    ids = torch.tensor([prompt])
    out = backend._model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def work(prompt: Sequence[int], **params: Any) -> Work:
    return Work(prompt_ids=tuple(prompt), params={"temperature": 0, **params})


def test_sequences_come_and_go_and_each_is_written_as_if_alone(backend: TransformersBackend) -> None:
    ends = {0: 20, 1: 6, 2: 12, 3: 9}
    comes = {0: [0, 1], 3: [2], 8: [3]}
    written: dict[int, list[int]] = {number: [] for number in ends}
    for step in range(60):
        for number in comes.get(step, ()):
            backend.add((number, 0), work(PROMPTS[number], max_tokens=40))
        for (number, _), token in backend.step():
            written[number].append(token.token_id)
            if len(written[number]) == ends[number]:
                backend.drop((number, 0))
    assert {number: len(tokens) for number, tokens in written.items()} == ends
    for number, tokens in written.items():
        assert tokens == generated(backend, PROMPTS[number], ends[number])
    assert backend._rows is None


def test_the_cache_has_room_for_all_that_are_let_in(tokenizer: Tokenizer) -> None:
    backend = made(llama(), tokenizer)
    backend._cache_tokens = 128
    for number in range(4):
        backend.add((number, 0), work(PROMPTS[0], max_tokens=50))
    assert [key for key, _ in backend.step()] == [(0, 0), (1, 0)]
    backend.drop((0, 0))
    backend.drop((1, 0))
    assert [key for key, _ in backend.step()] == [(2, 0), (3, 0)]


def test_scores_and_distributions_are_the_model_s_own(backend: TransformersBackend) -> None:
    import torch

    answers = [(5, 6, 7), (5,), (900, 12), (5, 6, 8)]

    def logprobs(ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return backend._model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)

    expected = []
    for answer in answers:
        found = logprobs([*PROMPTS[1], *answer])
        start = len(PROMPTS[1]) - 1
        total = sum(found[start + place, token].item() for place, token in enumerate(answer))
        # the end counts where another answer goes on
        expected.append(total + (found[-1, 2].item() if answer == (5,) else 0))
    assert backend.score(PROMPTS[1], answers) == pytest.approx(expected, abs=1e-3)
    one = backend.score(PROMPTS[2], [(5,), (6,)])
    assert one == pytest.approx([logprobs(PROMPTS[2])[-1, token].item() for token in (5, 6)], abs=1e-3)
    found = backend.next_logprobs(PROMPTS[1])
    assert found.tolist() == pytest.approx(logprobs(PROMPTS[1])[-1].tolist(), abs=1e-3)


def chooser(encode: Callable[[str], list[int]] = lambda text: [], **params: Any) -> Chooser:
    import torch

    prompt = Work(prompt_ids=(0, 1), params=params)
    return Chooser(prompt, torch.device("cpu"), frozenset({9}), encode)


def draws(logits: Sequence[float], times: int = 400, **params: Any) -> dict[int, float]:
    """How often each token is chosen, of `times` sequences in one batch."""
    import torch

    batch = torch.tensor([logits] * times, dtype=torch.float32)
    tokens = choose(batch, [chooser(**params, seed=seed) for seed in range(times)])
    ids = [token.token_id for token in tokens]
    return {token: ids.count(token) / times for token in sorted(set(ids))}


LIKELY = [math.log(share) for share in (0.4, 0.3, 0.2, 0.1)]


def test_tokens_are_drawn_by_their_probabilities() -> None:
    assert draws(LIKELY) == {
        token: pytest.approx(share, abs=0.08) for token, share in enumerate((0.4, 0.3, 0.2, 0.1))
    }
    # squared: 16, 9, 4 and 1 of 30
    assert draws(LIKELY, temperature=0.5)[0] == pytest.approx(16 / 30, abs=0.08)
    assert draws(LIKELY, top_k=2) == {0: pytest.approx(4 / 7, abs=0.08), 1: pytest.approx(3 / 7, abs=0.08)}
    assert set(draws(LIKELY, top_p=0.69)) == {0, 1}
    assert set(draws(LIKELY, top_p=0.71)) == {0, 1, 2}
    assert set(draws(LIKELY, top_p=1e-9)) == {0}
    assert set(draws(LIKELY, min_p=0.45)) == {0, 1, 2}
    assert draws(LIKELY, temperature=0) == {0: 1.0}


@pytest.mark.parametrize("likeliest", [1, 2, 3, 4])
def test_however_few_are_looked_at_first_the_draw_is_the_same(
    monkeypatch: pytest.MonkeyPatch, likeliest: int
) -> None:
    monkeypatch.setattr(hf_sampling, "_LIKELIEST", likeliest)
    assert draws(LIKELY, top_p=0.69) == {0: pytest.approx(4 / 7, abs=0.08), 1: pytest.approx(3 / 7, abs=0.08)}
    assert set(draws(LIKELY, min_p=0.45)) == {0, 1, 2}
    assert set(draws(LIKELY, min_p=0.45, top_p=0.75)) == {0, 1}  # of nine tenths, seven are too few
    assert set(draws(LIKELY, top_k=3, top_p=0.8)) == {0, 1, 2}
    assert draws(LIKELY)[3] == pytest.approx(0.1, abs=0.06)


def test_one_seed_draws_one_token_whoever_else_is_in_the_batch() -> None:
    import torch

    def first(others: int) -> int:
        batch = torch.tensor([LIKELY] * (others + 1))
        return choose(batch, [chooser(seed=5), *(chooser(top_k=2) for _ in range(others))])[0].token_id

    assert len({first(others) for others in (0, 1, 7)}) == 1


def test_penalties_biases_and_bans_are_vllm_s() -> None:
    import torch

    def adjusted(written: Sequence[int] = (), encode: Any = lambda text: [], **params: Any) -> list[float]:
        logits = torch.tensor([2.0, -2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0])
        own = chooser(encode, **params)
        for token in written:
            own.take(token)
        own.adjust(logits)
        return logits.tolist()

    none = -math.inf
    assert adjusted(repetition_penalty=2.0)[:4] == [1.0, -4.0, 1.0, 1.0]  # the prompt's tokens are 0 and 1
    assert adjusted([2, 2, 3], frequency_penalty=0.5)[:4] == [2.0, -2.0, 0.0, 0.5]
    assert adjusted([2, 2, 3], presence_penalty=0.5)[:4] == [2.0, -2.0, 0.5, 0.5]
    assert adjusted(logit_bias={"3": 4})[3] == 5.0
    assert adjusted(allowed_token_ids=[4])[3:6] == [none, 0.0, none]
    assert adjusted([5], min_tokens=2, stop_token_ids=[4])[4] == none == adjusted([5], min_tokens=2)[9]
    assert adjusted([5, 6], min_tokens=2)[9] == 3.0
    words = {"x": [7], " x": [8], "yz": [5, 6], " yz": [1, 5, 6]}
    banned = adjusted(encode=words.__getitem__, bad_words=["x", "yz"])
    assert (banned[7], banned[8], banned[6]) == (none, none, 0.0)
    assert adjusted([5], encode=words.__getitem__, bad_words=["yz"])[6] == none


def test_among_equals_the_token_that_was_written_stands_first() -> None:
    import torch

    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 2.0]])
    for token in (1, 2, 3):
        asked = Work(prompt_ids=(0,), params={"allowed_token_ids": [token]}, top_logprobs=2)
        own = Chooser(asked, torch.device("cpu"), frozenset(), lambda text: [])
        (written,) = choose(logits.clone(), [own])
        assert (written.chosen.rank, written.likeliest[0].token_id) == (1, token)
        assert written.likeliest[0].logprob == written.likeliest[1].logprob == written.chosen.logprob
        assert len({each.token_id for each in written.likeliest}) == 2


def test_tokens_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    backend = made(llama(), tokenizer)
    for params in ({"logit_bias": {"1000": 1}}, {"allowed_token_ids": [1000]}, {"stop_token_ids": [-1]}):
        with pytest.raises(RequestRejected, match="not in the model's vocabulary of 1000"):
            backend.add((0, 0), work(PROMPTS[0], **params))


def test_the_context_is_what_memory_holds(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_backend, "_free_bytes", lambda device: 2 * 100 * token_bytes)
    token_bytes = 2 * 2 * 2 * 8 * 4  # keys and values, two layers, two heads of eight floats
    with pytest.raises(ModelError, match="room for 100 tokens, not for 128"):
        made(llama(), tokenizer)
    monkeypatch.setattr(hf_backend, "_LEAST_CONTEXT", 64)
    backend = made(llama(), tokenizer)
    assert (backend.context_tokens, backend.facts["cache_bytes"]) == (100, 100 * token_bytes)
    assert "reduced from 128 to 100 tokens" in backend.facts["notes"][0]
    assert made(recurrent(), tokenizer).context_tokens == 128


@pytest.fixture(scope="module")
def small_model(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random numbers with the embedded one's tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("small")
    made_of = AutoTokenizer.from_pretrained(embedded_model)
    config = type(llama())(**{**SMALL, "vocab_size": len(made_of)})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    made_of.save_pretrained(folder)
    return folder


@pytest.mark.engine
def test_it_is_loaded_again_when_its_process_dies(small_model: Path, settings: Settings) -> None:
    runtime = Runtime(settings)
    spec = EngineSpec(engine="transformers", model=str(small_model), dtype="float32")
    try:
        runtime.load(replace(spec, max_model_len=4096))
        with pytest.raises(EngineLoadError, match="made for 128 tokens, not for 4,096"):
            runtime.wait_ready(60)
        runtime.load(spec)
        engine = runtime.wait_ready(60)
        (child,) = (each for each in psutil.Process().children() if each.pid in runtime._guard.pids)
        child.kill()
        until(lambda: runtime.status().phase != "ready")
        again = runtime.wait_ready(60)
        assert again is not engine
        request = Request(id="1", prompt="Once upon a time", params={"max_tokens": 3, "ignore_eos": True})
        assert runtime.run(again.complete(request)).output_tokens == 3
        (child,) = (each for each in psutil.Process().children() if each.pid in runtime._guard.pids)
        runtime.unload()
        until(lambda: runtime.status().phase == "empty")
        assert not child.is_running()
    finally:
        runtime.close()
