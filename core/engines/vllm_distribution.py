"""The distribution over the next token: how vLLM is asked for it, and the array that comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.errors import RequestRejected

if TYPE_CHECKING:
    import numpy as np


class Question:
    """One request, `token_ids` with `params`, and `read` for its RequestOutput.

    vLLM's newer model runner, that of GPUs, scores any tokens in the last place of a prompt: another
    token is put behind ours for that. The older one, that of CPUs, gives all log-probabilities of a
    token it writes. The newer one would as well, at the price of sorting the vocabulary for every
    request in the step: gigabytes, with a batch on a large GPU.
    """

    def __init__(self, config: Any, token_ids: Sequence[int]) -> None:
        import numpy as np
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._vocabulary = config.model_config.get_vocab_size()
        common = {
            "max_tokens": 1, "temperature": 0.0, "detokenize": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }  # fmt: skip
        if getattr(config, "use_v2_model_runner", False) and _can_score_prompts():
            self.token_ids = [*token_ids, token_ids[-1]]
            self.params = SamplingParams(
                prompt_logprob_token_ids=np.arange(self._vocabulary)[np.newaxis],
                prompt_logprob_start=len(token_ids) - 1,
                **common,
            )
        else:
            self.token_ids = list(token_ids)
            self.params = SamplingParams(logprobs=-1, flat_logprobs=True, **common)

    def read(self, output: Any) -> np.ndarray:
        """Natural logarithms, float32, (vocabulary,). Raises RequestRejected when there are none."""
        import numpy as np

        if self.params.logprobs is None:
            found = output.prompt_token_id_logprobs
            if found is None:  # the request was put off for others after it had begun
                raise RequestRejected("The engine was too busy for this.", hint="Try again.")
            return np.asarray(found[0], dtype=np.float32)
        given = output.outputs[0].logprobs
        logprobs = np.full(self._vocabulary, -np.inf, dtype=np.float32)
        logprobs[given.token_ids] = given.logprobs
        return logprobs


def _can_score_prompts() -> bool:
    from vllm import SamplingParams

    return "prompt_logprob_token_ids" in SamplingParams.__struct_fields__
