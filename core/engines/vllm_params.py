"""Our parameters as vLLM's objects, and its answers as ours."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core import sampling
from core.engines.vllm_start import plain
from core.errors import RequestRejected
from core.types import Completion, Sample, Timing, TokenLogprob

_FINISH_REASONS = {"stop": "stop", "length": "length", "abort": "abort", "repetition": "stop"}
MOST_SCORED_TOKENS = 128
"""vLLM's MAX_LOGPROB_TOKEN_IDS."""


def canonical(params: Mapping[str, Any]) -> str:
    """Equal text for equal parameters. Inside a value nothing is sorted: a schema's order is the answer's."""
    return json.dumps(dict(sorted(params.items())), ensure_ascii=False)


@functools.lru_cache(maxsize=256)
def sampling_params(canonical: str, streaming: bool, top_logprobs: int | None = None) -> Any:
    """vLLM's object for our parameters; vLLM copies it for each request, so equal ones share it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    params = {name: value for name, value in json.loads(canonical).items() if value is not None}
    params.setdefault("max_tokens", sampling.BY_NAME["max_tokens"].default)
    params.pop("length_penalty", None)  # a beam search's
    if "logit_bias" in params:
        params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
    if top_logprobs is not None:
        params["logprobs"] = top_logprobs
    elif "logprobs" in params:
        params["logprobs"] = 0  # the chosen tokens' alone: only their sum is kept, and others cost time
    if "structured_outputs" in params:
        ((kind, value),) = params["structured_outputs"].items()
        value = json.dumps(value, ensure_ascii=False) if kind == "json" else value
        params["structured_outputs"] = StructuredOutputsParams(**{kind: value})
    kind = RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY
    return SamplingParams(output_kind=kind, **params)


def scoring_params(token_ids: Sequence[int], *, forced: bool = False) -> list[Any]:
    """Requests that together give the log-probabilities of `token_ids` as the next token.

    At most MOST_SCORED_TOKENS at once. When `forced`, or where vLLM knows no such question (0.26),
    each token is forced in turn, and its log-probability, which vLLM takes before anything is
    forced, is read.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    common = {
        "max_tokens": 1, "temperature": 0.0, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY,
    }  # fmt: skip
    if forced or not _asks_for_tokens():
        return [SamplingParams(logprobs=0, allowed_token_ids=[token], **common) for token in token_ids]
    return [SamplingParams(logprob_token_ids=list(token_ids), **common)]


def token_logprobs(
    part: Any, wanted: int, texts: Callable[[Sequence[int]], list[str]]
) -> tuple[TokenLogprob, ...]:
    """A CompletionOutput's tokens, each with the `wanted` likeliest in its place.

    vLLM's own text of a token that was written knows what came before: it is empty while a character
    is incomplete. An alternative, or one without vLLM's text, is what `texts` says it is by itself.
    """
    entries = []
    for token_id, position in zip(part.token_ids, part.logprobs or (), strict=False):
        by_rank = sorted(position.items(), key=lambda item: item[1].rank)[:wanted]
        alternatives = tuple(
            TokenLogprob(other, entry.decoded_token or text, entry.logprob, entry.rank)
            for (other, entry), text in zip(by_rank, texts([other for other, _ in by_rank]), strict=True)
        )
        chosen = position[token_id]
        text = texts([token_id])[0] if chosen.decoded_token is None else chosen.decoded_token
        entries.append(TokenLogprob(token_id, text, chosen.logprob, chosen.rank, alternatives))
    return tuple(entries)


@functools.cache
def _asks_for_tokens() -> bool:
    from vllm import SamplingParams

    return "logprob_token_ids" in SamplingParams.__struct_fields__


def completion(
    output: Any, text: str, tokens: int, timing: Timing, logprobs: tuple[TokenLogprob, ...] = ()
) -> Completion:
    """Ours for vLLM's finished RequestOutput. `text` and `tokens` are the first answer's.

    Raises RequestRejected when the engine gave up on it.
    """
    samples = tuple(_sample(each) for each in output.outputs) if len(output.outputs) > 1 else ()
    first = output.outputs[0]
    return Completion(
        text=text,
        finish_reason=finish_reason(first),
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=sum(sample.output_tokens for sample in samples) if samples else tokens,
        timing=timing,
        cached_tokens=output.num_cached_tokens,
        cumulative_logprob=first.cumulative_logprob,
        samples=samples,
        logprobs=logprobs,
    )


def _sample(part: Any) -> Sample:
    return Sample(
        text=part.text,
        finish_reason=finish_reason(part),
        output_tokens=len(part.token_ids),
        cumulative_logprob=part.cumulative_logprob,
    )


def finish_reason(part: Any) -> Any:
    if part.finish_reason not in _FINISH_REASONS:
        raise RequestRejected(
            f"The engine ended this request with {part.finish_reason!r}.",
            hint="Perhaps no answer can have the structure asked for, or another parameter forbids it.",
        )
    return _FINISH_REASONS[part.finish_reason]


def reason_of(error: Exception) -> str:
    """What vLLM says against a request, in one line, without the place in xgrammar's source."""
    said = plain(str(error))
    if error.__cause__ is not None and said.startswith("Invalid grammar"):
        said = f"{said.rstrip('.')}: {plain(str(error.__cause__))}"
    return re.sub(r"\[[\d:]+\] /\S+: ", "", said)
