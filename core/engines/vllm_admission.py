"""When a batch's prompts may enter the engine: not long before it reads them, and slowly during chats.

A step of vLLM reads as many prompt tokens as fit it (16,384 on a large GPU), and a chat that
comes waits for the step at work: 0.6 s on a 7B model while a wave of a batch's prompts goes in,
and every step until all of them are in takes as long. Smaller steps for good cost the batch 5%.
So the prompts wait outside: two steps' worth is ahead at most, and far less while there are chats.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable

from core.engines.vllm_settings import Choice, DeviceFacts
from core.engines.vllm_stats import Counters
from core.types import Priority

AFTER_CHAT_S = 10.0
"""How long after an answer another message of the same person is expected."""
_CHAT_TOKENS = 1024
_STEPS_AHEAD = 2
"""One that the engine may be beginning before it is told of more, and one to be sure."""
_PATIENCE_S = 1.0
"""The longest wait for a step: vLLM makes none when all its requests were aborted."""


def admission(device: DeviceFacts, choice: Choice, counters: Counters) -> Admission:
    """On a GPU; on a CPU all steps are small."""
    chat_tokens = 0 if device.kind == "cpu" else _CHAT_TOKENS
    copies = choice.arguments.get("data_parallel_size") or 1
    step_tokens = choice.arguments["max_num_batched_tokens"] * copies  # each makes steps of its own
    return Admission(chat_tokens, step_tokens, cached_share=lambda: counters.recent_hits)


class Admission:
    """Lets in prompts of requests below a chat's priority, so many tokens a step.

    `chat_tokens` a step while somebody chats (0: nobody ever waits), else `step_tokens`, which are
    what a step can read; what is left over of two such steps is saved. A long prompt enters alone,
    and is taken off the next steps. Tokens that the prefix cache has are not read again:
    `cached_share` of each prompt doesn't count. Who waits enters by priority, lowest first, then by turn.

    `step` is called after each step of the engine, `entering` around each request. Both belong
    to one event loop.
    """

    def __init__(
        self,
        chat_tokens: int,
        step_tokens: int,
        now: Callable[[], float] = time.monotonic,
        cached_share: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.chat_tokens = chat_tokens
        self._step_tokens = step_tokens
        self._cached_share = cached_share
        self._now = now
        self._left = _STEPS_AHEAD * step_tokens
        self._chats = 0
        self._quiet_from = float("-inf")
        self._inside = 0
        self._turns = itertools.count()
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []

    def step(self) -> None:
        """The engine has made a step: more may come."""
        most = self.chat_tokens if self._is_paced else _STEPS_AHEAD * self._step_tokens
        self._left = min(self._left + self._lot, most)
        self._admit()

    @contextlib.asynccontextmanager
    async def entering(self, priority: int, tokens: int) -> AsyncIterator[None]:
        """Wait until a request with a prompt of `tokens` may be sent, and hold while it is answered.

        Programs and comparisons wait for chats only: somebody waits for them, and a loop that is busy
        with their streams hears of the engine's steps too late to keep it supplied.
        """
        is_chat = priority <= Priority.CHAT
        if is_chat:
            self._chats += 1
            self._left = min(self._left, self.chat_tokens)
        elif self.chat_tokens and (priority >= Priority.BATCH or self._is_paced):
            await self._wait(priority, round(tokens * (1 - self._cached_share())))
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if is_chat:
                self._chats -= 1
                self._quiet_from = self._now() + AFTER_CHAT_S
            self._admit()

    @property
    def _is_paced(self) -> bool:
        return self._chats > 0 or self._now() < self._quiet_from

    @property
    def _lot(self) -> int:
        return self.chat_tokens if self._is_paced else self._step_tokens

    async def _wait(self, priority: int, tokens: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._turns), tokens, turn))
        self._admit()
        while not turn.done():
            try:
                # shielded: a wait that runs out must not end the turn
                await asyncio.wait_for(asyncio.shield(turn), _PATIENCE_S)
            except TimeoutError:
                self.step()
            except asyncio.CancelledError:
                turn.cancel()
                raise

    def _admit(self) -> None:
        while self._waiting:
            *_, tokens, turn = self._waiting[0]
            # with nothing in the engine there will be no step to wait for
            if self._left < min(tokens, self._lot) and self._inside:
                return
            heapq.heappop(self._waiting)
            if not turn.done():
                self._left -= tokens
                turn.set_result(None)
