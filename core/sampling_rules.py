"""Sampling parameters that are valid one by one and contradict each other. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.errors import ParameterError

# what vLLM's beam search leaves out without a word; the value that asks for nothing
_NOT_WITH_BEAMS: dict[str, Any] = {
    "n": 1,
    "structured_outputs": None,
    "stop": [],
    "stop_token_ids": [],
    "min_tokens": 0,
    "bad_words": [],
    "logit_bias": {},
    "allowed_token_ids": [],
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


def check_together(params: Mapping[str, Any]) -> None:
    """Raise ParameterError when `params`, each valid by itself, can't be asked for at once."""
    if params.get("min_tokens", 0) > params.get("max_tokens", math.inf):
        raise ParameterError(
            f"min_tokens={params['min_tokens']} is more than max_tokens={params['max_tokens']}.",
            hint="Lower min_tokens or raise max_tokens.",
        )
    if params.get("beam_width") is not None:
        _check_beams(params)
    elif params.get("n", 1) > 1 and params.get("temperature", 1) == 0:
        raise ParameterError(
            f"n={params['n']} answers at temperature=0 would all be the same.",
            hint="Raise temperature, or ask for one answer.",
        )
    if "structured_outputs" in params and params.get("ignore_eos"):
        raise ParameterError(
            "structured_outputs and ignore_eos exclude each other: a structured answer has an end.",
            hint="Leave ignore_eos out.",
        )


def _check_beams(params: Mapping[str, Any]) -> None:
    for name, nothing in _NOT_WITH_BEAMS.items():
        if params.get(name, nothing) not in (nothing, None):
            raise ParameterError(
                f"beam_width and {name}={params[name]} exclude each other: beam search knows no {name}.",
                hint=f"Leave {name} out, or beam_width empty.",
            )
