"""How many parameters a language model has, counted from its config.json: pure arithmetic.

Counted for decoders with gated MLPs (Llama, Qwen, Mistral, Gemma, Phi, ...), their mixtures of experts,
DeepSeek's latent attention (arXiv:2405.04434, 2.1) and GPT-OSS. Exact for the models in
tests/model_configs; None for families that are built otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FAMILIES = frozenset(
    ("llama", "mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma",
     "gemma2", "gemma3", "gemma3_text", "phi3", "deepseek_v2", "deepseek_v3", "gpt_oss", "granite", "olmoe",
     "smollm3", "kimi_k2")
)  # fmt: skip
SIZES = frozenset(
    ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
     "head_dim", "intermediate_size", "moe_intermediate_size", "num_local_experts", "n_routed_experts",
     "num_experts", "num_experts_per_tok", "experts_per_token", "first_k_dense_replace",
     "decoder_sparse_step", "n_shared_experts", "shared_expert_intermediate_size",
     "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
)  # fmt: skip
"""Values of a config that are whole numbers: `count` takes it that they are."""
_LATENT = ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
_QKV_BIAS = frozenset(("qwen2", "qwen2_moe"))
_QK_NORM = frozenset(("qwen3", "qwen3_moe", "gemma3", "gemma3_text"))
_FOUR_NORMS = frozenset(("gemma2", "gemma3", "gemma3_text"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """`embedding`: of the vocabulary, in and out, which quantization leaves alone; `experts`: of all
    experts that are chosen between; `active`: those that one token goes through, embeddings included."""

    total: int
    embedding: int
    experts: int
    active: int


def count(text: Mapping[str, Any]) -> Parameters | None:
    """Of a language model's config, with the values that its file leaves out filled in (see `facts`)."""
    kind = str(text.get("model_type"))
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if text.get("kv_lora_rank"):
        needed += _LATENT
    if kind not in _FAMILIES or not all(text.get(name) for name in needed):
        return None
    hidden, layers, vocabulary = text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]
    embedding = vocabulary * hidden * (1 if text.get("tie_word_embeddings") else 2)
    norms = (4 if kind in _FOUR_NORMS else 2) * hidden
    total = embedding + hidden + layers * (_attention(text, kind) + norms)
    dense, (router, shared, one_expert) = _dense(text), _expert(text, kind)
    number, chosen = expert_numbers(text)
    sparse = sparse_layers(text) if number else 0
    total += (layers - sparse) * dense + sparse * (router + shared)
    experts = sparse * number * one_expert
    return Parameters(
        total=total + experts,
        embedding=embedding,
        experts=experts,
        active=total + sparse * chosen * one_expert,
    )


def expert_numbers(text: Mapping[str, Any]) -> tuple[int, int]:
    """(Experts of a layer that are chosen between, those that a token goes through), or zeros."""
    for name in ("num_local_experts", "n_routed_experts", "num_experts"):
        if text.get(name):
            chosen = text.get("num_experts_per_tok") or text.get("experts_per_token") or 1
            return int(text[name]), int(chosen)
    return 0, 0


def sparse_layers(text: Mapping[str, Any]) -> int:
    """How many layers have experts instead of one MLP."""
    layers = text["num_hidden_layers"]
    first, every = text.get("first_k_dense_replace") or 0, text.get("moe_layer_freq") or 1
    step, dense = text.get("decoder_sparse_step") or 1, text.get("mlp_only_layers") or ()
    if isinstance(every, list):  # a flag for each layer
        return min(layers, sum(map(bool, every)))
    if type(every) is not int or not isinstance(dense, (list, tuple)):
        return layers
    return sum(
        index >= first and index % every == 0 and (index + 1) % step == 0 and index not in dense
        for index in range(layers)
    )


def _attention(text: Mapping[str, Any], kind: str) -> int:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    if text.get("kv_lora_rank"):
        return _latent_attention(text)
    kv_heads = text.get("num_key_value_heads") or heads
    size = text.get("head_dim") or hidden // heads
    weights = hidden * size * (2 * heads + 2 * kv_heads)
    biases = 0
    if kind in _QKV_BIAS:
        biases = size * (heads + 2 * kv_heads)
    elif text.get("attention_bias"):
        biases = size * (heads + 2 * kv_heads) + hidden
    sinks = heads if kind == "gpt_oss" else 0
    return weights + biases + sinks + (2 * size if kind in _QK_NORM else 0)


def _latent_attention(text: Mapping[str, Any]) -> int:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    latent, rotary = text["kv_lora_rank"], text["qk_rope_head_dim"]
    plain, value, query = text["qk_nope_head_dim"], text["v_head_dim"], text.get("q_lora_rank")
    queries = heads * (plain + rotary)
    weights = (hidden * query + query + query * queries) if query else hidden * queries
    weights += hidden * (latent + rotary) + latent + latent * heads * (plain + value)
    return weights + heads * value * hidden


def _dense(text: Mapping[str, Any]) -> int:
    hidden, inner = text["hidden_size"], text.get("intermediate_size") or 0
    return 3 * hidden * inner + (2 * inner + hidden if text.get("mlp_bias") else 0)


def _expert(text: Mapping[str, Any], kind: str) -> tuple[int, int, int]:
    """Of a layer with experts: the router's, the shared experts', one expert's parameters."""
    hidden = text["hidden_size"]
    number, _ = expert_numbers(text)
    inner = text.get("moe_intermediate_size") or text.get("intermediate_size") or 0
    if kind == "gpt_oss":  # all with biases
        return hidden * number + number, 0, 3 * hidden * inner + 2 * inner + hidden
    router = hidden * number
    if kind in ("deepseek_v3", "kimi_k2"):
        router += number  # a correction for each expert's score
    shared = 3 * hidden * inner * (text.get("n_shared_experts") or 0)
    if text.get("shared_expert_intermediate_size"):  # Qwen2's, with a gate
        shared = 3 * hidden * text["shared_expert_intermediate_size"] + hidden
    return router, shared, 3 * hidden * inner
