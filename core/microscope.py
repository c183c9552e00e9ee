"""What the sampling parameters do to one token's distribution, as vLLM's sampler does it. Pure.

The order and the arithmetic (32-bit) are those of `vllm/v1/sample/sampler.py` (0.32), `Sampler.forward`:

    allowed_token_ids      forward -> apply_logits_processors: all others out
    min_tokens             logits_processor/builtin.py, MinTokensLogitsProcessor: the ends out
    logit_bias             LogitBiasLogitsProcessor: added
    repetition_penalty     model_executor/layers/utils.py, apply_penalties: logits above 0 divided by it,
                           others multiplied, for tokens of the prompt and of the answer
    frequency_penalty      the same function: taken off once for each time the answer used the token
    presence_penalty       the same function: taken off once if the answer used the token
    temperature            Sampler.sample: below 1e-5 only the likeliest is left; below 0.01 counts as 0.01
    min_p                  MinPLogitsProcessor: under this share of the likeliest one out
    top_k                  ops/topk_topp_sampler.py, apply_top_k_top_p_pytorch: ties at the border stay
    top_p                  the same function, on what is left, by then rescaled to 1

Of several tokens that are exactly as likely as the last one that `top_p` leaves in, which ones stay is
chance in vLLM too: it sorts them in any order. How many stay is not. On a GPU its kernels may cut ties at
the border of `top_k` as well.

`bad_words` and `structured_outputs` forbid tokens too; they are not reckoned here.

A model's scores (logits) have an origin, its log-probabilities don't: a constant was taken off. Only
`repetition_penalty` depends on it, as it tells scores above 0 from those below. `logits_of` finds the
constant of a 16-bit model, whose scores vLLM computes in 16 bits unless it is told otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from core.errors import ParameterError
from core.sampling import BY_NAME

CUTTERS = (None, "allowed_token_ids", "min_tokens", "temperature", "min_p", "top_k", "top_p")
"""What `Reshaped.cut_by` counts in: the parameters that remove tokens, in the order they act."""

NOT_EXACT = (
    "The repetition penalty can't be shown for this model: it depends on the model's scores "
    "themselves, and only their differences are known."
)
_GREEDY_BELOW = 1e-5
_LEAST_TEMPERATURE = 0.01
_SIGNIFICANT_BITS = {"bfloat16": 8, "float16": 11}
_EXPONENTS = range(-6, 12)  # a model's highest score is taken to be from 1/64 to 4096, or the negative
_SAMPLE = 64
_LEAST_TESTED = 64


@dataclass(frozen=True, slots=True, eq=False)
class Reshaped:
    """A distribution before and after the parameters; all arrays are (vocabulary,).

    `own`: the model's own probabilities; `probabilities`: the chance of each token to be written;
    `kept`: bool, whether it can be; `cut_by`: int8, the parameter that removed the token as an index of
    CUTTERS, 0 for none.
    """

    own: np.ndarray
    probabilities: np.ndarray
    kept: np.ndarray
    cut_by: np.ndarray

    @property
    def tokens_kept(self) -> int:
        return int(np.count_nonzero(self.kept))

    @property
    def mass_cut(self) -> float:
        """The model's own probability of all removed tokens together, 0 to 1."""
        return float(self.own[self.cut_by > 0].sum())

    @property
    def entropy_before(self) -> float:
        """Of the model's own distribution, in bits."""
        return entropy(self.own)

    @property
    def entropy_after(self) -> float:
        """Of the distribution that is drawn from, in bits."""
        return entropy(self.probabilities)

    def cutter(self, token_id: int) -> str | None:
        """The parameter that removed this token, None if it can be written."""
        return CUTTERS[self.cut_by[token_id]]

    def cuts(self) -> tuple[Cut, ...]:
        """What each parameter removed, in the order they act; those that removed nothing are left out."""
        found = []
        for number, name in enumerate(CUTTERS):
            removed = self.cut_by == number
            if name is not None and removed.any():
                found.append(Cut(name, int(np.count_nonzero(removed)), float(self.own[removed].sum())))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Cut:
    """One parameter removed `tokens` tokens, of `mass` own probability together."""

    parameter: str
    tokens: int
    mass: float


@dataclass(frozen=True, slots=True)
class Row:
    """A token's own probability, its chance to be written now, and what removed it, if anything did."""

    token_id: int
    own: float
    chance: float
    cut_by: str | None


def reshape(
    logprobs: np.ndarray,
    params: Mapping[str, Any],
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    *,
    logits: np.ndarray | None = None,
    end_ids: Collection[int] = (),
) -> Reshaped:
    """The distribution that vLLM draws the next token from.

    `logprobs`: the model's own, float32 (vocabulary,), as `Engine.next_logprobs` gives them; `params`:
    names of `core.sampling`, others than those above have no effect here; `prompt_ids`, `output_ids`:
    the tokens before, of the prompt and of the answer so far; `logits`: what `logits_of` found;
    `end_ids`: the tokens that end an answer, beside `stop_token_ids`.

    Raises ParameterError for a repetition_penalty without logits, for a bias beyond the vocabulary, and
    where no token is left to choose from.
    """
    value = _reader(params)
    own = np.exp(logprobs.astype(np.float64))
    if logits is None and value("repetition_penalty") != 1:
        raise ParameterError(NOT_EXACT, hint="Set repetition_penalty to 1.")
    scores = (logprobs if logits is None else logits).astype(np.float32)
    cut_by = np.zeros(len(scores), np.int8)
    remove = _Remover(scores, cut_by)
    allowed = value("allowed_token_ids")
    if allowed:
        outside = np.ones(len(scores), bool)
        outside[_inside(allowed, len(scores))] = False
        remove("allowed_token_ids", outside)
    if len(output_ids) < value("min_tokens"):
        ends = np.zeros(len(scores), bool)
        ends[_inside([*end_ids, *(value("stop_token_ids") or ())], len(scores))] = True
        remove("min_tokens", ends)
    for token, bias in (value("logit_bias") or {}).items():
        _check_token(int(token), len(scores))
        scores[int(token)] += np.float32(bias)
    _penalize(scores, value, prompt_ids, output_ids)
    if not np.isfinite(scores).any():
        raise ParameterError("These parameters leave no token to choose from.", hint="Allow more tokens.")
    temperature = value("temperature")
    if temperature < _GREEDY_BELOW:
        others = np.ones(len(scores), bool)
        others[int(np.argmax(scores))] = False
        remove("temperature", others)
    else:
        scores /= np.float32(max(temperature, _LEAST_TEMPERATURE))
        _truncate(scores, remove, value)
    return Reshaped(own, _softmax(scores.astype(np.float64)), np.isfinite(scores), cut_by)


class _Remover:
    """Takes tokens out of `scores`, and notes in `cut_by` who did it first."""

    def __init__(self, scores: np.ndarray, cut_by: np.ndarray) -> None:
        self._scores = scores
        self._cut_by = cut_by

    def __call__(self, parameter: str, tokens: np.ndarray) -> None:
        """`tokens`: bool (vocabulary,)."""
        self._cut_by[tokens & np.isfinite(self._scores)] = CUTTERS.index(parameter)
        self._scores[tokens] = -np.inf


def _reader(params: Mapping[str, Any]) -> Any:
    def value(name: str) -> Any:
        default = BY_NAME[name].default if name in BY_NAME else None
        return default if params.get(name) is None else params[name]

    return value


def _penalize(scores: np.ndarray, value: Any, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
    written = np.bincount(_inside(output_ids, len(scores)), minlength=len(scores))
    seen = written > 0
    seen[_inside(prompt_ids, len(scores))] = True
    penalty = np.float32(value("repetition_penalty"))
    if penalty != 1:
        scores[seen] *= np.where(scores[seen] > 0, np.float32(1) / penalty, penalty)
    scores -= np.float32(value("frequency_penalty")) * written.astype(np.float32)
    scores -= np.float32(value("presence_penalty")) * (written > 0).astype(np.float32)


def _truncate(scores: np.ndarray, remove: _Remover, value: Any) -> None:
    """min_p, top_k and top_p, one after the other on what the one before left."""
    if value("min_p") > 0:
        chances = _softmax(scores)
        remove("min_p", chances < chances.max() * np.float32(value("min_p")))
    top_k = value("top_k")
    if 0 < top_k < len(scores):
        remove("top_k", scores < np.partition(scores, len(scores) - top_k)[len(scores) - top_k])
    if value("top_p") < 1:
        rising = np.argsort(scores, kind="stable")
        sums = np.cumsum(_softmax(scores[rising]), dtype=np.float64).astype(np.float32)
        out = sums <= np.float32(1) - np.float32(value("top_p"))
        out[-1] = False  # the likeliest always stays
        tokens = np.zeros(len(scores), bool)
        tokens[rising[out]] = True
        remove("top_p", tokens)


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def _inside(token_ids: Iterable[int], vocabulary: int) -> list[int]:
    """Those of the ids that the distribution covers: an image's or a padding's may lie beyond."""
    return [token for token in token_ids if 0 <= token < vocabulary]


def _check_token(token: int, vocabulary: int) -> None:
    if not 0 <= token < vocabulary:
        raise ParameterError(
            f"logit_bias names token {token}; the vocabulary has {vocabulary:,} tokens.",
            hint="Take token ids from the prompt inspector.",
        )


def entropy(probabilities: np.ndarray) -> float:
    """In bits. 2 to its power is the number of equally likely tokens that are as hard to guess."""
    some = probabilities[probabilities > 0]
    return max(0.0, float(-(some * np.log2(some)).sum()))


def top(reshaped: Reshaped, count: int, also: Iterable[int] = ()) -> tuple[Row, ...]:
    """The `count` tokens that matter most, before or now, and those in `also`; by own probability.

    So a token keeps its place while the parameters change, and one that a bias lifted is there too.
    """
    weight = np.maximum(reshaped.own, reshaped.probabilities)
    count = min(count, len(weight))
    chosen = (
        set(np.argpartition(weight, len(weight) - count)[len(weight) - count :].tolist()) if count else set()
    )
    chosen.update(_inside(also, len(weight)))
    order = sorted(chosen, key=lambda token: (-reshaped.own[token], token))
    return tuple(
        Row(token, float(reshaped.own[token]), float(reshaped.probabilities[token]), reshaped.cutter(token))
        for token in order
    )


# -- the logits behind log-probabilities --------------------------------------------


def logits_of(logprobs: np.ndarray, dtype: str) -> np.ndarray | None:
    """The model's own logits, float32 (vocabulary,), found from its log-probabilities; None: not to be found.

    The two differ by one unknown constant. `dtype` is what the model computes in (`EngineInfo.dtype`).
    16-bit numbers get coarser from each power of two to the next, so the right constant puts every
    token on one of them, and a wrong one puts those that it moves from finer to coarser numbers
    beside them. Only if no second constant fits, it is the right one. None for 32 bits, and where too
    few tokens tell: in a tiny vocabulary, or where all logits are on one side of 0.
    """
    bits = _SIGNIFICANT_BITS.get(dtype)
    rising = np.sort(logprobs[np.isfinite(logprobs)].astype(np.float64))
    if bits is None or len(rising) < _LEAST_TESTED:
        return None
    # float32's last bits: log-softmax rounds twice, relative to its result
    error = float(np.abs(rising).max()) * 2.0**-21
    sample = rising[np.linspace(0, len(rising) - 1, _SAMPLE).astype(int)]
    constants = _highest(bits) - rising[-1]
    likely = constants[_fits(sample[None, :] + constants[:, None], bits, error).all(axis=1)]
    # two are as bad as many: stop there
    fitting = list(islice((each for each in likely if _fits(rising + each, bits, error).all()), 2))
    if len(fitting) != 1 or np.count_nonzero(_tells(rising + fitting[0], bits, error)) < _LEAST_TESTED:
        return None
    shifted = logprobs.astype(np.float64) + fitting[0]
    return np.where(_tells(shifted, bits, error), _rounded(shifted, bits), shifted).astype(np.float32)


def _highest(bits: int) -> np.ndarray:
    """All numbers of that many significant bits that may be a model's highest logit."""
    digits = np.arange(2 ** (bits - 1), 2**bits, dtype=np.float64)
    positive = np.concatenate([np.ldexp(digits, exponent - bits + 1) for exponent in _EXPONENTS])
    return np.concatenate([positive, -positive])


def _fits(values: np.ndarray, bits: int, error: float) -> np.ndarray:
    """Whether each value is a number of that many significant bits, or too near 0 to tell."""
    return ~_tells(values, bits, error) | (np.abs(values - _rounded(values, bits)) <= error)


def _tells(values: np.ndarray, bits: int, error: float) -> np.ndarray:
    """Whether the numbers at each value lie so far apart that the error is small against it."""
    return _step(values, bits) > 8 * error


def _step(values: np.ndarray, bits: int) -> np.ndarray:
    """The distance between neighbouring numbers of that many significant bits, at each value."""
    return np.ldexp(1.0, np.frexp(values)[1] - bits)


def _rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """The nearest numbers of that many significant bits."""
    step = _step(values, bits)
    return np.where(np.isfinite(values), np.round(values / step) * step, values)
