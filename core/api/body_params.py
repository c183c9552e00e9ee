"""Sampling parameters as the fields of a request's body, for what a preset fills in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHAT, _COMPLETIONS, _RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
# what says the same as one of our parameters: with any of them given, the preset's is left out
_SAME: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "structured_outputs": (
        "structured_outputs", "response_format", "text", "guided_json", "guided_regex", "guided_choice",
        "guided_grammar",
    ),
    "logprobs": ("logprobs", "top_logprobs"),
    "beam_width": ("use_beam_search", "n"),
}  # fmt: skip
# parameters that /v1/responses has no field for
_NOT_IN_RESPONSES = frozenset(
    {"min_tokens", "bad_words", "allowed_token_ids", "spaces_between_special_tokens", "beam_width",
     "length_penalty", "n", "logprobs"}
)  # fmt: skip


def filled(path: str, body: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `params` add to `body` of a request to `path`; null in the body asks for nothing.

    Nothing that the body gives is overridden. Endpoints that generate no text get nothing.
    """
    if path not in (_CHAT, _COMPLETIONS, _RESPONSES):
        return {}
    added: dict[str, Any] = {}
    for name, value in params.items():
        if any(body.get(same) is not None for same in _SAME.get(name, (name,))):
            continue
        if path == _RESPONSES and name in _NOT_IN_RESPONSES:
            continue
        added |= _fields(path, name, value)
    return added


def _fields(path: str, name: str, value: Any) -> dict[str, Any]:
    """One parameter as this endpoint calls it."""
    if name == "beam_width":  # vLLM's server: as many choices come back, the best first
        return {"use_beam_search": True, "n": value}
    if name == "logprobs" and path == _CHAT:
        return {"logprobs": True, "top_logprobs": value}
    if name == "max_tokens" and path == _RESPONSES:
        return {"max_output_tokens": value}
    return {name: value}
