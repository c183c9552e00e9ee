"""Structures that the engine got ready for, or did not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from core.engines.vllm_params import canonical
from core.errors import EngineDied, RequestRejected

_TRIAL_S = 20.0
_MOST_TRIALS = 1_000
_TRY_AGAIN_S = 60.0


class Structures:
    """Tries each structure once, with `make_ready`, however many requests want it.

    vLLM needs minutes for some short structures (500 optional letters in a row), and nothing
    ends that: one request finds out, with a limit on its time, and all others are refused.
    """

    def __init__(self, make_ready: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        self._make_ready = make_ready
        self._trials: dict[str, asyncio.Task[None]] = {}

    async def ensure(self, structure: Mapping[str, Any]) -> None:
        """Return when the engine is ready for it. Raises RequestRejected."""
        key = canonical(structure)
        trial = self._trials.get(key)
        if trial is None:
            while len(self._trials) >= _MOST_TRIALS:
                self._trials.pop(next(iter(self._trials)))
            trial = self._trials[key] = asyncio.create_task(self._try(structure))
        try:
            await asyncio.shield(trial)  # whoever asked first may be cancelled: others wait for it too
        except EngineDied:
            self._trials.pop(key, None)
            raise

    async def _try(self, structure: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(_TRIAL_S):
                await self._make_ready(structure)
        except TimeoutError as error:
            # it may only have waited behind another one
            asyncio.get_running_loop().call_later(_TRY_AGAIN_S, self._trials.pop, canonical(structure), None)
            raise RequestRejected(
                f"The engine does not get ready for this structure within {_TRIAL_S:.0f} s.",
                hint="Use fewer optional parts and repetitions.",
            ) from error
