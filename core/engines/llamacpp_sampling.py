"""How the next token is drawn: our parameters on llama.cpp's samplers, in vLLM's order.

Single tokens are allowed or forbidden first, then penalties, temperature, min_p, top_k and top_p; a
grammar is asked about the token that was drawn, and about all tokens only where it refuses that one.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.engines.llamacpp_grammar import grammar_of
from core.engines.llamacpp_model import Model, errors, library
from core.errors import RequestRejected

if TYPE_CHECKING:
    import numpy as np

_NO_SEED = 0xFFFFFFFF  # llama.cpp takes this one for "any"


class Candidates:
    """llama.cpp's list of tokens with their logits, one for all sequences: it is filled anew each time."""

    def __init__(self, vocabulary_size: int) -> None:
        import numpy as np

        self._native = library()
        self._ids = np.arange(vocabulary_size, dtype=np.int32)
        self._kept = np.zeros(vocabulary_size, dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._array = self._native.llama_token_data_array()

    def draw(
        self, chain: Any, logits: np.ndarray, noise: np.ndarray | None, grammar: Any = None
    ) -> int | None:
        """The token that `chain` takes, or of those it leaves the one that `noise` (vocabulary,) takes.

        None when `grammar` allows none that is not forbidden already.
        """
        import numpy as np

        kept, array = self._kept, self._array
        kept["id"], kept["logit"] = self._ids, logits
        array.data = kept.ctypes.data_as(self._native.llama_token_data_p)
        array.size, array.selected, array.sorted = len(kept), -1, False
        if grammar is not None:
            self._native.llama_sampler_apply(grammar, ctypes.byref(array))
            if not (kept["logit"] > -math.inf).any():
                return None
        self._native.llama_sampler_apply(chain, ctypes.byref(array))
        if noise is None:
            return array.data[array.selected].id
        left = np.ctypeslib.as_array(array.data, (array.size,))
        return int(left["id"][(left["logit"] + noise[left["id"]]).argmax()])

    def allows(self, grammar: Any, token: int) -> bool:
        """Whether `grammar` allows this one token next."""
        one = self._native.llama_token_data(token, 1.0, 0.0)
        array = self._native.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        self._native.llama_sampler_apply(grammar, ctypes.byref(array))
        return array.data[0].logit > -math.inf


class Sampler:
    """One sequence's. `draw` and `close` are its life. Making one raises RequestRejected."""

    def __init__(
        self,
        model: Model,
        candidates: Candidates,
        prompt_ids: Sequence[int],
        params: Mapping[str, Any],
        context_tokens: int,
    ) -> None:
        self._native = library()
        self._candidates = candidates
        self._limits = _Limits(model, params)
        self._drawn: list[int] = []
        self._chance = _chance(params)
        self._size = model.vocabulary_size
        self._chain: Any = None
        self._grammar: Any = None
        structure = params.get("structured_outputs")
        if structure:
            self._grammar = self._make_grammar(model, grammar_of(structure))
        self._chain = self._make_chain(model, prompt_ids, params, context_tokens)

    def draw(self, logits: np.ndarray) -> int:
        """The next token, which counts as written. Raises RequestRejected when there can be none."""
        import numpy as np

        logits = self._limits.applied(logits, self._drawn)
        # The Gumbel trick: each token has luck of its own. Drawn from the sum of probabilities, as
        # llama.cpp does it, a rounding anywhere before a token would turn it into its neighbour.
        luck = self._chance and -np.log(self._chance.standard_exponential(self._size))
        token = self._candidates.draw(self._chain, logits, luck)
        if self._grammar is not None:
            if not self._candidates.allows(self._grammar, token) or logits[token] == -math.inf:
                token = self._candidates.draw(self._chain, logits, luck, self._grammar)
                if token is None:
                    raise RequestRejected(
                        "No token can follow: the structure and other parameters exclude each other.",
                        hint="Leave min_tokens, bad_words, logit_bias or allowed_token_ids out.",
                    )
            self._native.llama_sampler_accept(self._grammar, token)
        self._native.llama_sampler_accept(self._chain, token)
        self._drawn.append(token)
        return token

    def close(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                self._native.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def _make_grammar(self, model: Model, grammar: str) -> Any:
        made = self._native.llama_sampler_init_grammar(model.vocabulary, grammar.encode(), b"root")
        if not made:
            said = errors()[-1:] or ["it gave no reason"]
            raise RequestRejected(
                f"llama.cpp can't read this structure's grammar: {said[0]}.",
                hint="Correct it; the engine's log names the place.",
            )
        return made

    def _make_chain(
        self, model: Model, prompt_ids: Sequence[int], params: Mapping[str, Any], context_tokens: int
    ) -> Any:
        native = self._native
        chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            native.llama_sampler_chain_add(chain, sampler)

        size = model.vocabulary_size
        repeated = params.get("repetition_penalty", 1.0)
        frequency = params.get("frequency_penalty", 0.0)
        presence = params.get("presence_penalty", 0.0)
        if repeated != 1:  # of prompt and answer; the other two count the answer alone
            sampler = native.llama_sampler_init_penalties(size, context_tokens, repeated, 0.0, 0.0)
            for token in prompt_ids:
                native.llama_sampler_accept(sampler, token)
            add(sampler)
        if frequency or presence:
            add(native.llama_sampler_init_penalties(size, context_tokens, 1.0, frequency, presence))
        temperature = params.get("temperature", 1.0)
        if temperature == 0:
            add(native.llama_sampler_init_greedy())
            return chain
        if temperature != 1:
            add(native.llama_sampler_init_temp(temperature))
        if params.get("min_p", 0) > 0:
            add(native.llama_sampler_init_min_p(params["min_p"], 1))
        if params.get("top_k", 0) > 0:
            add(native.llama_sampler_init_top_k(params["top_k"]))
        if params.get("top_p", 1) < 1:
            add(native.llama_sampler_init_top_p(params["top_p"], 1))
        if self._chance is None:
            add(native.llama_sampler_init_dist(secrets.randbelow(_NO_SEED)))
        return chain


def _chance(params: Mapping[str, Any]) -> np.random.Generator | None:
    """Where a seed is given: the same luck again. Without one llama.cpp draws by itself, which is faster."""
    import numpy as np

    seed = params.get("seed")
    if seed is None or params.get("temperature", 1.0) == 0:
        return None
    return np.random.default_rng(seed % (1 << 64))


class _Limits:
    """Tokens that may not come, or are more or less likely than the model says."""

    def __init__(self, model: Model, params: Mapping[str, Any]) -> None:
        self._least = params.get("min_tokens", 0)
        self._ends = sorted(model.end_ids | set(params.get("stop_token_ids") or ()))
        self._bias = {int(token): bias for token, bias in (params.get("logit_bias") or {}).items()}
        self._allowed = list(params.get("allowed_token_ids") or ())
        self._bad = [words for text in params.get("bad_words") or () for words in _spellings(model, text)]
        named = (*self._bias, *self._allowed, *(params.get("stop_token_ids") or ()))
        for token in named:
            if not 0 <= token < model.vocabulary_size:
                raise RequestRejected(
                    f"The model has no token {token}; its last one is {model.vocabulary_size - 1}.",
                    hint="Correct the token ids.",
                )

    def applied(self, logits: np.ndarray, drawn: Sequence[int]) -> np.ndarray:
        """`logits` (vocabulary,), or a changed copy."""
        import numpy as np

        banned = [words[-1] for words in self._bad if _ends_with(drawn, words[:-1])]
        if len(drawn) < self._least:
            banned += self._ends
        if not (banned or self._bias or self._allowed):
            return logits
        changed = logits.copy()
        if self._allowed:
            changed = np.full_like(logits, -np.inf)
            changed[self._allowed] = logits[self._allowed]
        for token, bias in self._bias.items():
            changed[token] += bias
        changed[banned] = -np.inf
        return changed


def _spellings(model: Model, text: str) -> list[list[int]]:
    """The tokens of a text at an answer's beginning and after a space, as vLLM forbids both."""
    plain = model.encode(text.lstrip(), add_special_tokens=False)
    spaced = model.encode(" " + text.lstrip(), add_special_tokens=False)
    same_length = bool(plain) and len(spaced) == len(plain) and spaced[0] != plain[0]
    return [words for words in (plain, spaced if same_length else []) if words]


def _ends_with(tokens: Sequence[int], end: Sequence[int]) -> bool:
    return not end or list(tokens[-len(end) :]) == list(end)
