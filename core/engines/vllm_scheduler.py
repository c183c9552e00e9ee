"""vLLM's scheduler with one more rule: while somebody chats, steps stay short. Runs in the engine's process.

A step of vLLM reads as many prompt tokens as fit it (16,384 on a large GPU), and a chat that comes
waits for the step at work, the one planned behind it, and its own: a second on a 7B model while a
wave of a batch's prompts goes in. Smaller steps for good cost the batch 5%. So, while somebody
chats and for a while after, a step reads a lot of the batch's prompts at most, as large as keeps
steps at `STEP_S`; and a step that reads a chat's prompt reads none of the batch's. On a CPU steps
are small anyway, and each costs much by itself: there a chat every second took 15% of a batch.

At any time `CHAT_SLOTS` places are a chat's. So more of a batch than it has places for may wait inside
the engine, which then needs nobody to fill the places of rows that end, a thousand at once where
all answers are equally long.
"""

from __future__ import annotations

import time
from typing import Any

from core.engines.vllm_settings import CHAT_SLOTS
from core.types import Priority

AFTER_CHAT_S = 30.0
"""How long after an answer another message of the same person is expected."""
STEP_S = 0.05
"""What steps should take while somebody chats: a first token comes after two of them and a short one."""
FIRST_LOT = 1024
LEAST_LOT = 512
"""With a very large model even this takes longer; with less, a batch would stand still."""
_READY = ("WAITING", "RUNNING", "PREEMPTED")


def paced(**arguments: Any) -> Any:
    """What vLLM's `scheduler_cls` names: the scheduler it would take by itself, with this module's rule."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    is_async = arguments["vllm_config"].scheduler_config.async_scheduling
    kind = type("PacedScheduler", (Pacing, AsyncScheduler if is_async else Scheduler), {})
    return kind(**arguments)


class Pacing:
    """Mixed into vLLM's Scheduler. `holds_batch`: a chat's prompt is read without any of the batch's.

    Of vLLM 0.26 to 0.33 it relies on `running` (requests with a place in the engine), `is_prefill_chunk` of
    a request (its prompt isn't read to its end), `max_num_scheduled_tokens` and `max_num_running_reqs`, in
    later ones `max_num_active_reqs`, and that `schedule` reads them anew in each step.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.lot = FIRST_LOT
        self.holds_batch = arguments["vllm_config"].device_config.device_type != "cpu"
        self._chats: list[Any] = []
        self._quiet_from = float("-inf")
        self._chat_stuck = False
        self._filled: set[int] = set()
        self._last_end = time.monotonic()

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        if request.priority <= Priority.CHAT:
            self._chats.append(request)

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        self._chats = [chat for chat in self._chats if not chat.is_finished()]
        now = time.monotonic()
        if self._chats:
            self._quiet_from = now + AFTER_CHAT_S
        free = CHAT_SLOTS - len(self._chats)
        places = self.max_num_running_reqs - max(0, free)
        if now >= self._quiet_from:
            return self._limited(arguments, options, places=places)
        coming = [chat for chat in self._chats if _is_unread(chat) and chat.status.name in _READY]
        if coming and self.holds_batch and not self._chat_stuck:
            output = self._chats_only(coming, arguments, options)
            # no room in the KV cache: the batch must go on, or there never is
            self._chat_stuck = not any(chat.request_id in output.num_scheduled_tokens for chat in coming)
            return output
        self._chat_stuck = False
        return self._one_lot(arguments, options, places)

    def update_from_output(self, scheduler_output: Any, *arguments: Any, **options: Any) -> Any:
        """Sizes the lot by what full steps took: a tenth less when too long, a little more when short."""
        now = time.monotonic()
        took, self._last_end = now - self._last_end, now
        if id(scheduler_output) in self._filled:
            self._filled.discard(id(scheduler_output))
            if took > STEP_S:
                self.lot = max(LEAST_LOT, int(self.lot * 0.9))
            elif took < 0.9 * STEP_S:
                self.lot = min(self.max_num_scheduled_tokens, int(self.lot * 1.05) + 1)
        return super().update_from_output(scheduler_output, *arguments, **options)

    def _chats_only(self, coming: list[Any], arguments: Any, options: Any) -> Any:
        """A step with the chats' prompts and everybody's answers."""
        aside = [each for each in self.running if each.is_prefill_chunk and each.priority > Priority.CHAT]
        if aside:
            held = set(map(id, aside))
            self.running = [each for each in self.running if id(each) not in held]
        outside = sum(chat.status.name != "RUNNING" for chat in coming)
        # who is more urgent enters first, so these places are the chats'
        places = min(len(self.running) + outside, self.max_num_running_reqs - len(aside))
        try:
            return self._limited(arguments, options, places=places)
        finally:
            self.running = self.running + aside

    def _one_lot(self, arguments: Any, options: Any, places: int) -> Any:
        """A step with everybody's answers and a lot of the batch's prompts."""
        answering = sum(not each.is_prefill_chunk for each in self.running)
        tokens = answering * (1 + self.num_spec_tokens) + self.lot
        tokens = min(tokens, self.max_num_scheduled_tokens)
        output = self._limited(arguments, options, places=places, tokens=tokens)
        if output.total_num_scheduled_tokens >= tokens:
            self._filled.add(id(output))
        return output

    def _limited(self, arguments: Any, options: Any, *, places: int, tokens: int | None = None) -> Any:
        """vLLM's own schedule, with so many places and tokens for this step at most.

        Places that are taken stay taken, which vLLM asserts: a row may have that of a chat which was let
        wait, for its grammar or adapter, and then went away.
        """
        places = max(places, len(self.running))
        names = ("max_num_scheduled_tokens", "max_num_running_reqs", "max_num_active_reqs")
        limits = {name: getattr(self, name) for name in names if hasattr(self, name)}
        try:
            for name, limit in limits.items():
                wanted = (tokens or limit) if name == "max_num_scheduled_tokens" else places
                setattr(self, name, min(limit, wanted))
            return super().schedule(*arguments, **options)
        finally:
            for name, limit in limits.items():
                setattr(self, name, limit)


def _is_unread(request: Any) -> bool:
    return request.num_computed_tokens < request.num_prompt_tokens
