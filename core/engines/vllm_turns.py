"""Two kinds of requests that vLLM mixes up in one step, kept out of each other's way.

When one request of a step asks for the log-probabilities of certain tokens (`logprob_token_ids`), the
sampler in `vllm/v1/sample/sampler.py` gives every request of that step columns for those, and one that
asked for the likeliest tokens gets rubbish. So the likeliest wait until none of the other kind is out;
while they are out, the other kind asks in another way (`vllm_params.scoring_params`, forced).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any


class Turns:
    """`alternatives` counts the requests out, or waiting, that ask for the likeliest tokens."""

    def __init__(self) -> None:
        self.alternatives = 0
        self._certain = 0
        self._no_certain = asyncio.Event()
        self._no_certain.set()

    @contextlib.asynccontextmanager
    async def of(self, params: Any) -> AsyncIterator[None]:
        """Hold while a request with these vLLM parameters is out. Waits where it has to."""
        if params.logprobs:
            self.alternatives += 1
            try:
                await self._no_certain.wait()
                yield
            finally:
                self.alternatives -= 1
        elif getattr(params, "logprob_token_ids", None):  # 0.26 has none
            self._certain += 1
            self._no_certain.clear()
            try:
                yield
            finally:
                self._certain -= 1
                if not self._certain:
                    self._no_certain.set()
        else:
            yield
