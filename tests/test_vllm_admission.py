"""A batch's prompts enter by lots while somebody chats, and freely when nobody does."""

import asyncio
from types import SimpleNamespace

import pytest

from core.engines.vllm_admission import AFTER_CHAT_S, Admission, admission
from core.engines.vllm_stats import Counters
from core.types import Priority


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Talk:
    """An engine's door with requests that stay inside until they are let go."""

    cached = 0.0

    def __init__(self, lot):
        self.clock = Clock()
        self.door = Admission(lot, 1000, self.clock, lambda: self.cached)
        self.entered = []
        self.leave = {}
        self.tasks = {}

    async def send(self, name, tokens, priority=Priority.BATCH):
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, tokens, priority))
        await self.settle()

    async def _stay(self, name, tokens, priority):
        async with self.door.entering(priority, tokens):
            self.entered.append(name)
            await self.leave[name].wait()

    async def end(self, name):
        self.leave[name].set()
        await self.settle()

    async def step(self):
        self.door.step()
        await self.settle()

    async def settle(self):
        for _turn in range(10):
            await asyncio.sleep(0)

    async def close(self):
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@pytest.fixture
def talked():
    """Run a coroutine function with a Talk, and clean up."""

    def run(steps, lot=100):
        async def whole():
            talk = Talk(lot)
            try:
                await steps(talk)
            finally:
                await talk.close()

        asyncio.run(whole())

    return run


def test_without_a_chat_two_steps_are_ahead_and_each_step_lets_in_what_it_can_read(talked):
    async def steps(talk):
        for number in range(40):
            await talk.send(number, 100)
        assert talk.entered == list(range(20))
        await talk.step()
        assert talk.entered == list(range(30))
        await talk.step()
        assert talk.entered == list(range(40))
        for _step in range(5):
            await talk.step()
        for number in range(40, 70):
            await talk.send(number, 100)
        assert talk.entered == list(range(60))

    talked(steps)


def test_a_chat_that_comes_stops_the_rush(talked):
    async def steps(talk):
        for number in range(40):
            await talk.send(number, 100)
        assert talk.entered == list(range(20))
        await talk.send("chat", 10, Priority.CHAT)
        await talk.step()
        assert talk.entered == [*range(20), "chat", 20]
        await talk.step()
        assert talk.entered[-1] == 21

    talked(steps)


def test_while_somebody_chats_a_step_takes_one_lot_in_order_and_the_chat_never_waits(talked):
    async def steps(talk):
        await talk.send("chat", 5000, Priority.CHAT)
        for number in range(5):
            await talk.send(number, 40)
        assert talk.entered == ["chat", 0, 1]
        await talk.step()
        assert talk.entered == ["chat", 0, 1, 2, 3]
        await talk.send("second chat", 10, Priority.CHAT)
        assert talk.entered[-1] == "second chat"
        await talk.step()
        assert talk.entered[-1] == 4

    talked(steps)


def test_programs_and_comparisons_wait_for_chats_only(talked):
    async def steps(talk):
        for number in range(40):
            await talk.send(number, 100)
        for number in range(30):
            await talk.send(f"program {number}", 100, Priority.API + 5)
        await talk.send("comparison", 100, Priority.COMPARE)
        assert talk.entered[20:] == [*(f"program {number}" for number in range(30)), "comparison"]
        await talk.send("chat", 10, Priority.CHAT)
        await talk.send("late", 100, Priority.API)
        assert talk.entered[-1] == "chat"
        await talk.step()
        assert talk.entered[-1] == "late"

    talked(steps)


def test_who_is_more_urgent_than_a_batch_enters_before_its_rows_that_wait(talked):
    async def steps(talk):
        await talk.send("chat", 10, Priority.CHAT)
        for number in range(4):
            await talk.send(number, 100)
        await talk.send("program", 100, Priority.API)
        await talk.send("comparison", 100, Priority.COMPARE)
        for _step in range(3):
            await talk.step()
        assert talk.entered == ["chat", 0, "comparison", "program", 1]

    talked(steps)


def test_a_prompt_longer_than_a_lot_enters_alone_and_the_next_ones_pay_for_it(talked):
    async def steps(talk):
        await talk.send("chat", 10, Priority.CHAT)
        await talk.send("long", 250)
        await talk.send("short", 10)
        assert talk.entered == ["chat", "long"]
        await talk.step()
        assert talk.entered == ["chat", "long"]
        await talk.step()
        assert talk.entered == ["chat", "long", "short"]

    talked(steps)


def test_the_door_opens_some_time_after_the_last_chat(talked):
    async def steps(talk):
        await talk.send("chat", 10, Priority.CHAT)
        await talk.send(0, 90)
        await talk.end("chat")
        await talk.send(1, 90)
        assert talk.entered == ["chat", 0]
        talk.clock.now += AFTER_CHAT_S + 0.1
        await talk.send(2, 90)
        await talk.step()
        assert talk.entered[1:] == [0, 1, 2]

    talked(steps)


def test_an_empty_engine_lets_the_next_one_in_and_a_cancelled_wait_takes_nothing(talked):
    async def steps(talk):
        await talk.send("chat", 10, Priority.CHAT)
        await talk.send(0, 100)
        await talk.send(1, 100)
        await talk.send(2, 100)
        talk.tasks[1].cancel()
        await talk.settle()
        await talk.end("chat")
        await talk.end(0)
        assert talk.entered == ["chat", 0, 2]

    talked(steps)


def test_no_step_for_a_second_does_not_hold_a_row_for_ever(talked):
    async def steps(talk):
        await talk.send("chat", 10, Priority.CHAT)
        await talk.send(0, 100)
        await talk.send(1, 100)
        assert talk.entered == ["chat", 0]
        for _tenth in range(30):
            await asyncio.sleep(0.1)
            if 1 in talk.entered:
                break
        assert 1 in talk.entered

    talked(steps)


def test_a_lot_of_zero_holds_nobody(talked):
    async def steps(talk):
        await talk.send("chat", 10, Priority.CHAT)
        for number in range(3):
            await talk.send(number, 1000)
        assert talk.entered == ["chat", 0, 1, 2]

    talked(steps, lot=0)


def test_what_the_prefix_cache_has_does_not_count(talked):
    async def steps(talk):
        talk.cached = 0.9
        await talk.send("chat", 10, Priority.CHAT)
        for number in range(12):
            await talk.send(number, 100)
        assert talk.entered == ["chat", *range(10)]

    talked(steps)


def step_of(queries, hits):
    scheduler = SimpleNamespace(
        num_running_reqs=1,
        num_waiting_reqs=0,
        kv_cache_usage=0.1,
        prefix_cache_stats=SimpleNamespace(queries=queries, hits=hits),
    )
    return scheduler, SimpleNamespace(num_prompt_tokens=0, num_generation_tokens=1)


def test_counters_tell_each_step_and_what_share_of_the_prompts_was_cached_lately():
    ticks = []
    counters = Counters(on_step=lambda: ticks.append(1))
    assert counters.recent_hits == 0
    for _step in range(30):
        counters.record(*step_of(100, 0), 0)
    counters.record(*step_of(0, 0), 0)
    assert counters.recent_hits == 0
    for _step in range(30):
        counters.record(*step_of(100, 90), 0)
    assert counters.recent_hits == pytest.approx(0.9, abs=0.01)
    assert len(ticks) == 61
    assert counters.prefix_hits == 2700


def test_each_copy_of_the_model_has_steps_of_its_own():
    """With four GPUs the prompts of two steps of one were ahead at most, and half of the GPUs waited."""

    async def enter(copies):
        choice = SimpleNamespace(arguments={"max_num_batched_tokens": 1000, "data_parallel_size": copies})
        door, entered = admission(SimpleNamespace(kind="cuda"), choice, Counters()), []

        async def ask(number):
            async with door.entering(Priority.BATCH, 1000):
                entered.append(number)
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(ask(number)) for number in range(20)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(entered)

    alone, four = asyncio.run(enter(None)), asyncio.run(enter(4))
    assert four >= 4 * (alone - 1) > 0
