"""vLLM's own beam search, on our engine.

vLLM searches outside its engine: each step sends every path as a request for one token. So paths have
the priority of the request they belong to, and others' requests run beside them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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


class Paths:
    """Ends a search as soon as no path can come out before the best one that has ended.

    vLLM goes on until max_tokens, with a model that has said all after ten. To end it, the next step's
    requests are answered as if they had been aborted, and vLLM takes stock: nothing else changes. (0.26
    does not look for that; it finds no candidates, and drops the paths that can't win any more.)
    """

    def __init__(self, generate: Generate, asked: Any, prompt_tokens: int, end_id: int | None) -> None:
        self._generate = generate
        self._asked = asked
        self._prompt_tokens = prompt_tokens
        self._end_id = None if asked.ignore_eos else end_id
        self._sums: dict[tuple[int, ...], float] = {}  # of this step's paths, by their own tokens
        self._best = -math.inf
        self._ended = False

    async def generate(self, prompt: Any, params: Any, name: str, **_: Any) -> AsyncIterator[Any]:
        """One step of one path. The likeliest path of a step is asked first, its name ends in 0."""
        path = tuple(prompt["prompt_token_ids"][self._prompt_tokens :])
        if name.endswith("-beam-0"):
            self._sums = {kept: total for kept, total in self._sums.items() if len(kept) == len(path)}
            self._ended = self._best_to_come(path) <= self._best
        if self._ended:
            yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="abort", logprobs=None)])
            return
        async with contextlib.aclosing(self._generate(prompt, params, name)) as outputs:
            async for output in outputs:
                self._note(path, output.outputs[0].logprobs or ())
                yield output

    def _note(self, path: tuple[int, ...], positions: Sequence[Mapping[int, Any]]) -> None:
        before = self._sums.get(path, 0.0)
        for position in positions:  # there is one; none when the request was aborted
            for token, entry in position.items():
                if token == self._end_id:
                    self._best = max(self._best, self._score(before + entry.logprob, len(path)))
                else:
                    self._sums[*path, token] = before + entry.logprob

    def _best_to_come(self, path: tuple[int, ...]) -> float:
        """A sum only falls; where longer answers are favoured, the longest it could get counts."""
        length = self._asked.max_tokens if self._asked.length_penalty > 0 else len(path)
        return self._score(self._sums.get(path, 0.0), length)

    def _score(self, total: float, tokens: int) -> float:
        """As vLLM's `get_beam_search_score`, which counts the prompt's tokens as well."""
        return total / (self._prompt_tokens + tokens) ** self._asked.length_penalty


async def search(engine: Any, generate: Generate, request: Request, ids: list[int], room: int) -> Any:
    """vLLM's RequestOutput with the best path alone; `room` tokens are left in the context after `ids`.

    `generate` is called as AsyncLLM.generate is. Cancelling ends all paths.
    """
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.inputs import tokens_input
    from vllm.sampling_params import BeamSearchParams

    params = request.params
    skip = params.get("skip_special_tokens", True)
    knows_special = "skip_special_tokens" in BeamSearchParams.__struct_fields__
    asked = BeamSearchParams(
        beam_width=params["beam_width"],
        max_tokens=min(params.get("max_tokens", sampling.BY_NAME["max_tokens"].default), room),
        ignore_eos=params.get("ignore_eos", False),
        length_penalty=params.get("length_penalty", 1.0),
        include_stop_str_in_output=params.get("include_stop_str_in_output", False),
        **({"skip_special_tokens": skip} if knows_special else {}),
    )
    tokenizer = engine.renderer.get_tokenizer()
    paths = Paths(generate, asked, len(ids), tokenizer.eos_token_id)

    class Search(BeamSearchOnlineMixin):
        renderer = engine.renderer
        engine_client = SimpleNamespace(input_processor=engine.input_processor, generate=paths.generate)

    (output,) = [each async for each in Search().beam_search(tokens_input(ids), request.id, asked)]
    best = output.outputs[0]
    if not knows_special:  # 0.26 writes them into the text
        best.text = tokenizer.decode(best.token_ids, skip_special_tokens=skip)
    if params.get("logprobs") is None and request.top_logprobs is None:
        best.cumulative_logprob = None
    output.outputs = [best]
    return output
