"""Places in the engine that batches and comparisons share."""

from __future__ import annotations

import asyncio
import random

import pytest

from core.slots import Slots


async def hold(slots: Slots, priority: int, name: str, log: list[str], until: asyncio.Event) -> None:
    async with slots.held(priority):
        log.append(name)
        await until.wait()


def test_who_waits_gets_in_by_priority_then_by_turn() -> None:
    async def scene() -> list[str]:
        slots, log, first, rest = Slots(lambda: 1), [], asyncio.Event(), asyncio.Event()
        rest.set()
        tasks = [asyncio.create_task(hold(slots, 10, "first", log, first))]
        await asyncio.sleep(0)
        for priority, name in ((10, "batch"), (10, "batch again"), (-5, "comparison")):
            tasks.append(asyncio.create_task(hold(slots, priority, name, log, rest)))
        await asyncio.sleep(0)
        assert log == ["first"]
        first.set()
        await asyncio.gather(*tasks)
        return log

    assert asyncio.run(scene()) == ["first", "comparison", "batch", "batch again"]


def test_a_larger_engine_lets_more_in() -> None:
    async def scene() -> None:
        limit, log, until = [1], [], asyncio.Event()
        slots = Slots(lambda: limit[0])
        tasks = [asyncio.create_task(hold(slots, 0, str(n), log, until)) for n in range(2)]
        await asyncio.sleep(0)
        assert log == ["0"]
        limit[0] = 3
        tasks.append(asyncio.create_task(hold(slots, 0, "2", log, until)))
        await asyncio.sleep(0.01)
        assert sorted(log) == ["0", "1", "2"]
        until.set()
        await asyncio.gather(*tasks)

    asyncio.run(scene())


@pytest.mark.parametrize("seed", range(20))
def test_no_place_is_lost_or_made_when_holders_and_waiters_are_cancelled(seed: int) -> None:
    async def scene() -> None:
        chance, slots, now, most = random.Random(seed), Slots(lambda: 3), [0], [0]

        async def work() -> None:
            async with slots.held(chance.randrange(3)):
                now[0] += 1
                most[0] = max(most[0], now[0])
                try:
                    await asyncio.sleep(chance.random() / 1000)
                finally:
                    now[0] -= 1

        tasks = [asyncio.create_task(work()) for _ in range(60)]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(chance.random() / 1000)
        assert most[0] == 3 and now[0] == 0
        async with asyncio.timeout(1), slots.held(0), slots.held(0), slots.held(0):
            pass  # all three are free again

    asyncio.run(scene())
