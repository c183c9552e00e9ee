"""One measurement: requests made beforehand go to the engine at their times, and come back as records."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from core.bench.records import EngineSample, PlannedRequest, RequestRecord
from core.bench.telemetry import Sampler
from core.engines.base import Engine
from core.errors import EngineDied, WorkbenchError
from core.types import Completion, Priority, Request


class Measuring:
    """A point at work. Belongs to the engine's loop; its properties may be read from any thread.

    `streams`: every token is seen as it comes, as a client would; else answers come whole, which
    costs the process less. `total` counts requests, or batches of a latency benchmark.
    """

    def __init__(self, engine: Engine, total: int, *, streams: bool) -> None:
        self.total = total
        self.is_stopped = False
        self.latencies_s: list[float] = []
        self._engine = engine
        self._ask = self._streamed if streams else self._whole
        self._records: dict[int, RequestRecord] = {}
        self._failed = 0
        self._began = time.monotonic()
        self._ended: float | None = None
        self._counts_batches = False
        self._sampler: Sampler | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def done(self) -> int:
        return len(self.latencies_s) if self._counts_batches else len(self._records)

    @property
    def failed(self) -> int:
        return self._failed

    @property
    def elapsed_s(self) -> float:
        """Until now, or until the last answer."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def samples(self) -> tuple[EngineSample, ...]:
        return self._sampler.samples if self._sampler else ()

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        """Of the requests that have ended, in the order in which they were sent."""
        return tuple(record for _, record in sorted(self._records.items()))

    async def send(
        self, requests: Sequence[Request], times_s: Sequence[float], max_concurrency: int | None
    ) -> None:
        """Send each request at its time after now, and wait for all answers.

        Who finds `max_concurrency` requests in flight waits for a place. A request that the engine
        refuses is a failed record; raises EngineDied when the engine is gone.
        """
        places = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        await self._watched(self._send(requests, times_s, places))

    async def send_batches(
        self, batches: Sequence[Sequence[Request]], prepare: Callable[[], Awaitable[Any]]
    ) -> None:
        """Send one batch after the other, each whole at once; `prepare` comes before each and isn't timed."""
        self._counts_batches = True
        await self._watched(self._send_batches(batches, prepare))

    def stop(self) -> None:
        """Send no more and abort what is in flight: that counts nowhere. On the loop."""
        self.is_stopped = True
        if self._task is not None:
            self._task.cancel()

    async def _watched(self, work: Any) -> None:
        self._began = time.monotonic()
        self._sampler = Sampler(self._engine.stats, self._began)
        self._task = asyncio.create_task(work)
        self._sampler.start()
        try:
            await self._task
        except asyncio.CancelledError:
            if not self.is_stopped or asyncio.current_task().cancelling():
                raise
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            self._ended = time.monotonic()
            self._sampler.stop()

    async def _send(
        self, requests: Sequence[Request], times_s: Sequence[float], places: asyncio.Semaphore | None
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for number, (request, at_s) in enumerate(zip(requests, times_s, strict=True)):
                wait = self._began + at_s - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._one(number, request, places))

    async def _send_batches(
        self, batches: Sequence[Sequence[Request]], prepare: Callable[[], Awaitable[Any]]
    ) -> None:
        number = 0
        for batch in batches:
            await prepare()
            failed, began = self._failed, time.monotonic()
            async with asyncio.TaskGroup() as group:
                for request in batch:
                    group.create_task(self._one(number, request, None))
                    number += 1
            if failed == self._failed:  # a batch that lacks an answer was quicker than it is
                self.latencies_s.append(time.monotonic() - began)

    async def _one(self, number: int, request: Request, places: asyncio.Semaphore | None) -> None:
        arrived = time.monotonic()
        async with places or contextlib.nullcontext():
            sent = time.monotonic()
            start_s, queue_s = sent - self._began, sent - arrived if places else 0.0
            try:
                found = await self._ask(request, sent)
            except EngineDied:
                raise
            except WorkbenchError as error:
                found = {"output_len": 0, "error": str(error)}
                self._failed += 1
        # not as the engine counts the prompt: a server may not say
        self._records[number] = RequestRecord(
            input_len=len(request.prompt), start_s=start_s, queue_s=queue_s, **found
        )

    async def _streamed(self, request: Request, sent: float) -> dict[str, Any]:
        first = last = None
        gaps: list[float] = []
        async with contextlib.aclosing(self._engine.stream(request)) as items:
            async for item in items:
                if isinstance(item, Completion):
                    return _found(item, sent, first, last, gaps)
                if last is None:
                    first = item.at_s
                elif item.tokens:  # the rest of a character brings no token
                    gaps.append(item.at_s - last)
                else:
                    continue
                last = item.at_s
        raise AssertionError("the stream ends with a Completion")

    async def _whole(self, request: Request, sent: float) -> dict[str, Any]:
        completion = await self._engine.complete(request)
        timing = completion.timing
        return _found(completion, sent, timing.first_token_s, timing.last_token_s, ())


def _found(
    completion: Completion, sent: float, first: float | None, last: float | None, gaps: Sequence[float]
) -> dict[str, Any]:
    return {
        "output_len": completion.output_tokens,
        "ttft_s": None if first is None else first - sent,
        "itls_s": tuple(gaps),
        "e2el_s": None if last is None else last - sent,
        "cached_tokens": completion.cached_tokens,
        "finish_reason": completion.finish_reason,
    }


def _first(errors: BaseExceptionGroup) -> BaseException:
    """What all requests in flight met; the engine's death before anything that came of it."""
    died, _ = errors.split(EngineDied)
    return (died or errors).exceptions[0]


def requests_of(
    planned: Sequence[PlannedRequest],
    params: Mapping[str, Any],
    *,
    ignore_eos: bool,
    max_model_len: int,
    name: str,
) -> list[Request]:
    """Planned requests as the engine takes them, after chats and before batches.

    One with an `output_len` is answered with exactly that many tokens if `ignore_eos`; one without
    ends where the model ends it, at its own or the params' max_tokens, or where the context is full.
    """
    free = {name: value for name, value in params.items() if name not in ("max_tokens", "ignore_eos")}
    fixed: dict[int, dict[str, Any]] = {}
    made = []
    for number, one in enumerate(planned):
        if one.output_len is None:
            room = max(1, max_model_len - len(one.token_ids))
            most = one.params.get("max_tokens") or params.get("max_tokens") or room
            asked = {**free, **one.params, "max_tokens": min(most, room)}
        else:
            asked = fixed.setdefault(
                one.output_len, {**free, "max_tokens": one.output_len, "ignore_eos": ignore_eos}
            )
            if one.params:
                asked = {**free, **one.params, "max_tokens": one.output_len, "ignore_eos": ignore_eos}
        made.append(
            Request(
                id=f"{name}-{number}",
                prompt=one.token_ids,
                params=asked,
                priority=Priority.API,
                adapter=one.adapter,
            )
        )
    return made
