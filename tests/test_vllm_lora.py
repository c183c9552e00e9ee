"""Whose turn it is when more adapters are asked for than an engine holds. With vLLM's calls noted down."""

import asyncio
from types import SimpleNamespace

import pytest

from core.engines import vllm_lora
from core.engines.vllm_lora import VllmAdapters, obstacles
from core.errors import EngineDied, RequestRejected
from core.types import LoraAdapter, Priority, Request


class Engine:
    """Notes what it is asked to load and to put away."""

    def __init__(self):
        self.calls = []
        self.errored = False
        self.refuses = ""
        self.answers = asyncio.Event()
        self.answers.set()

    async def add_lora(self, number):
        await self.answers.wait()
        if self.refuses:
            raise Exception(self.refuses)
        self.calls.append(("add", number))

    async def remove_lora(self, number):
        self.calls.append(("remove", number))


def config(max_loras=2, max_cpu_loras=None):
    return SimpleNamespace(
        lora_config=SimpleNamespace(max_loras=max_loras, max_cpu_loras=max_cpu_loras, max_lora_rank=16)
    )


def adapters_of(max_loras=2, kind="cuda", **values):
    adapters = VllmAdapters(config(max_loras, **values), kind, SimpleNamespace(name="m", folder=None))
    adapters._checked = lambda adapter: adapter.number
    return adapters


def request(number, priority=Priority.BATCH):
    return Request(
        id="r", prompt="x", priority=priority, adapter=number and LoraAdapter(f"a{number}", "", number)
    )


class Use:
    """One request at work until `end` is called."""

    def __init__(self, adapters, engine, number, priority=Priority.BATCH):
        self._done = asyncio.Event()
        self.has_begun = False
        self.task = asyncio.create_task(self._run(adapters, engine, request(number, priority)))

    async def _run(self, adapters, engine, asked):
        async with adapters.held(asked, lambda: engine) as held:
            self.has_begun = True
            await self._done.wait()
            return held

    async def end(self):
        self._done.set()
        return await self.task


async def settled():
    await asyncio.sleep(0.05)


def test_each_is_loaded_once_and_the_longest_unused_goes():
    async def scenario():
        engine, adapters = Engine(), adapters_of(2)
        for number in (1, 2, 1, 3, 1):  # each begins and ends by itself
            assert await Use(adapters, engine, number).end() == number
        assert engine.calls == [("add", 1), ("add", 2), ("remove", 2), ("add", 3)]

    asyncio.run(scenario())


def test_on_a_cpu_one_place_stays_free():
    async def scenario():
        engine, adapters = Engine(), adapters_of(3, "cpu")
        uses = [Use(adapters, engine, number) for number in (1, 2, 3, None)]
        await settled()
        assert [use.has_begun for use in uses] == [True, True, False, True]
        await uses[0].end()
        await settled()
        assert uses[2].has_begun
        assert engine.calls == [("add", 1), ("add", 2), ("remove", 1), ("add", 3)]
        for use in uses[1:]:
            await use.end()

    asyncio.run(scenario())
    assert obstacles(config(1), "cpu") == {"adapters": "The model was loaded without LoRA."}
    assert obstacles(config(1), "cuda") == obstacles(config(2), "cpu") == {}


def test_what_is_kept_in_memory_counts_on_a_gpu():
    async def scenario():
        engine, adapters = Engine(), adapters_of(1, max_cpu_loras=2)
        uses = [Use(adapters, engine, number) for number in (1, 2)]
        await settled()
        assert all(use.has_begun for use in uses)
        for use in uses:
            await use.end()

    asyncio.run(scenario())


def test_a_chat_is_not_kept_waiting_by_a_batch_of_others():
    async def scenario():
        engine, adapters = Engine(), adapters_of(1)
        first = Use(adapters, engine, 1)
        await settled()
        chat = Use(adapters, engine, 2, Priority.CHAT)
        await settled()
        rows = [Use(adapters, engine, 1) for _ in range(3)]  # their adapter is loaded, but a chat waits
        await settled()
        assert not chat.has_begun and not any(row.has_begun for row in rows)
        await first.end()
        await settled()
        assert chat.has_begun and not any(row.has_begun for row in rows)
        await chat.end()
        await settled()
        assert all(row.has_begun for row in rows)
        for row in rows:
            await row.end()
        assert engine.calls == [("add", 1), ("remove", 1), ("add", 2), ("remove", 2), ("add", 1)]

    asyncio.run(scenario())


def test_one_that_gives_up_waiting_lets_the_others_go_on():
    async def scenario():
        engine, adapters = Engine(), adapters_of(1)
        first = Use(adapters, engine, 1)
        await settled()
        chat, row = Use(adapters, engine, 2, Priority.CHAT), Use(adapters, engine, 1)
        await settled()
        assert not row.has_begun
        chat.task.cancel()
        await settled()
        assert row.has_begun
        await first.end()
        await row.end()

    asyncio.run(scenario())


def test_one_that_can_not_be_loaded_fails_alone(monkeypatch):
    async def scenario():
        engine, adapters = Engine(), adapters_of(1)
        engine.refuses = "Call to add_lora method failed: it is odd"
        with pytest.raises(RequestRejected, match=r"can't load the adapter a1: it is odd"):
            await Use(adapters, engine, 1).end()
        engine.refuses = ""
        with pytest.raises(RequestRejected, match="it is odd"):  # not asked again so soon
            await Use(adapters, engine, 1).end()
        monkeypatch.setattr(vllm_lora, "_REFUSED_S", 0.0)
        assert await Use(adapters, engine, 1).end() == 1

    asyncio.run(scenario())


def test_the_engines_death_during_a_load_is_told():
    async def scenario():
        engine, adapters = Engine(), adapters_of(1)
        engine.answers.clear()  # as vLLM's calls that are pending when its core ends
        use = Use(adapters, engine, 1)
        await settled()
        engine.errored = True
        with pytest.raises(EngineDied):
            await use.end()

    asyncio.run(scenario())


def test_an_engine_without_lora_refuses_with_what_to_do():
    async def scenario():
        adapters = VllmAdapters(SimpleNamespace(lora_config=None), "cpu", SimpleNamespace(name="m"))
        assert await Use(adapters, Engine(), None).end() is None
        with pytest.raises(RequestRejected, match=r"loaded without LoRA\. Load it again with LoRA"):
            await Use(adapters, Engine(), 1).end()

    asyncio.run(scenario())
