"""When a batch's prompts may enter the engine while somebody chats.

A step of vLLM reads as many prompt tokens as fit it (16,384 on a large GPU), and a chat that
comes waits for the step at work: 0.6 s on a 7B model when a wave of a batch's prompts goes in.
Smaller steps for good cost the batch 5%. So the prompts themselves come in smaller lots, and
only while there are chats.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from core.types import Priority

AFTER_CHAT_S = 10.0
"""How long after an answer another message of the same person is expected."""
_PATIENCE_S = 1.0
"""The longest wait for a step: vLLM makes none when all its requests were aborted."""


class Admission:
    """Lets at most `prompt_tokens` of requests below a chat's priority in a step; 0: as many as come.

    `step` is called after each step of the engine, `entering` around each request. Both belong
    to one event loop. What is left over of a step is not saved; what was taken too much (a long
    prompt enters alone) is taken off the next ones. Tokens that the prefix cache has are not
    read again: `cached_share` of each prompt doesn't count.
    """

    def __init__(
        self,
        prompt_tokens: int,
        now: Callable[[], float] = time.monotonic,
        cached_share: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._cached_share = cached_share
        self._now = now
        self._left = prompt_tokens
        self._chats = 0
        self._quiet_from = float("-inf")
        self._inside = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def step(self) -> None:
        """The engine has made a step: the next lot may come."""
        self._left = min(self._left, 0) + self.prompt_tokens
        self._admit()

    @contextlib.asynccontextmanager
    async def entering(self, priority: int, tokens: int) -> AsyncIterator[None]:
        """Wait until a request with a prompt of `tokens` may be sent, and hold while it is answered."""
        is_chat = priority <= Priority.CHAT
        if is_chat:
            self._chats += 1
        elif self._is_paced:
            await self._wait(round(tokens * (1 - self._cached_share())))
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
        return self.prompt_tokens > 0 and (self._chats > 0 or self._now() < self._quiet_from)

    async def _wait(self, tokens: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        place = (tokens, turn)
        self._waiting.append(place)
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
            tokens, turn = self._waiting[0]
            # with nothing in the engine there will be no step to wait for
            if self._is_paced and self._left < min(tokens, self.prompt_tokens) and self._inside:
                return
            self._waiting.popleft()
            if not turn.done():
                self._left -= tokens
                turn.set_result(None)
