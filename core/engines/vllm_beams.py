"""vLLM's own beam search, on our engine.

vLLM searches outside its engine: each step sends every path as a request for one token. So paths have
the priority of the request they belong to, and others' requests run beside them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from core import sampling
from core.types import Feature, Request

Generate = Callable[..., AsyncIterator[Any]]


def obstacles() -> dict[Feature, str]:
    """Why this vLLM can't search, as EngineInfo.cannot has it; empty when it can."""
    try:
        import vllm.entrypoints.generate.beam_search.online  # noqa: F401
    except ImportError:
        return {"beam_search": "This version of vLLM has no beam search that the workbench knows."}
    return {}


async def search(engine: Any, generate: Generate, request: Request, ids: list[int], room: int) -> Any:
    """vLLM's RequestOutput with the best path alone; `room` tokens are left in the context after `ids`.

    `generate` is called as AsyncLLM.generate is. Cancelling ends all paths.
    """
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.inputs import tokens_input
    from vllm.sampling_params import BeamSearchParams

    class Search(BeamSearchOnlineMixin):
        renderer = engine.renderer
        engine_client = SimpleNamespace(input_processor=engine.input_processor, generate=generate)

    params = request.params
    asked = BeamSearchParams(
        beam_width=params["beam_width"],
        max_tokens=min(params.get("max_tokens", sampling.BY_NAME["max_tokens"].default), room),
        ignore_eos=params.get("ignore_eos", False),
        length_penalty=params.get("length_penalty", 1.0),
        include_stop_str_in_output=params.get("include_stop_str_in_output", False),
        skip_special_tokens=params.get("skip_special_tokens", True),
    )
    (output,) = [each async for each in Search().beam_search(tokens_input(ids), request.id, asked)]
    best = output.outputs[0]
    if params.get("logprobs") is None and request.top_logprobs is None:
        best.cumulative_logprob = None
    output.outputs = [best]
    return output
