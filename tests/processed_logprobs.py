"""Run by test_microscope_engine in a process of its own: what vLLM's sampler itself makes of some requests.

    python tests/processed_logprobs.py MODE IN.json OUT.npz

IN: {"model": folder, "cases": [{"prompt_ids": [...], "params": {...}}, ...]}. OUT: for case i and
token k, "i:k" holds float32 (vocabulary,) as `logprobs_mode` MODE gives it, and "i" the token ids.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    # one thread of two: several wait for each other in a busy loop, for ever on a busy machine
    "VLLM_CPU_NUM_OF_RESERVED_CPU": str(max(1, (os.cpu_count() or 2) - 1)),
    "TORCHDYNAMO_DISABLE": "1",  # else the first request for a log-probability waits for a compiler
    "HF_HUB_OFFLINE": "1",
}


def main(mode: str, source: str, target: str) -> None:
    os.environ.update(_ENVIRONMENT)
    import numpy as np
    from vllm import LLM, SamplingParams

    asked = json.loads(Path(source).read_text())
    engine = LLM(
        asked["model"],
        kv_cache_memory_bytes=100 << 20,
        max_model_len=256,
        max_num_seqs=1,
        enforce_eager=True,
        # a prompt read from the cache may differ in the last bit
        enable_prefix_caching=False,
        max_logprobs=-1,
        logprobs_mode=mode,
    )
    vocabulary = engine.model_config.get_vocab_size()
    found: dict[str, Any] = {}
    for number, case in enumerate(asked["cases"]):
        params = dict(case["params"])
        if "logit_bias" in params:
            params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
        wanted = SamplingParams(**params, logprobs=-1, flat_logprobs=True, detokenize=False)
        (output,) = engine.generate({"prompt_token_ids": case["prompt_ids"]}, wanted, use_tqdm=False)
        answer = output.outputs[0]
        found[str(number)] = np.array(answer.token_ids)
        for place in range(len(answer.token_ids)):
            values = np.full(vocabulary, -np.inf, np.float32)
            entries = slice(answer.logprobs.start_indices[place], answer.logprobs.end_indices[place])
            values[answer.logprobs.token_ids[entries]] = answer.logprobs.logprobs[entries]
            found[f"{number}:{place}"] = values
    np.savez(target, **found)


if __name__ == "__main__":  # vLLM's worker imports this file again
    main(*sys.argv[1:])
