"""A synchronous library in a process of its own: requests in, text out, whatever becomes of the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from worker_backend import Letters

from core.engines.engine_log import EngineLog
from core.engines.guard import Guard
from core.engines.loop import LoopThread
from core.engines.worker import Worker
from core.engines.worker_text import Part, Token, Work, Writer
from core.errors import EngineDied, EngineLoadError, RequestRejected


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread("test-loop")
    yield loop
    loop.stop()


@pytest.fixture
def start(loop: LoopThread, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []
    guard = Guard()
    stages: list[str] = []

    def start(**options: Any) -> Worker:
        log = EngineLog(tmp_path / "logs")
        log.begin()
        guard.begin()
        worker = Worker.start(
            "worker_backend:make", options, report=stages.append, log=log, guard=guard, run=loop.run
        )
        assert stages == ["Sharpening the pencil"]
        made.append(worker)
        return worker

    yield start
    for worker in made:
        loop.run(worker.close())
    guard.end_all()
    guard.close()


async def write(worker: Worker, prompt: str, answers: int = 1, priority: int = 0, **params: Any) -> list[Any]:
    work = Work(prompt_ids=tuple(map(ord, prompt)), params=params, priority=priority)
    return [item async for parts in worker.generate(work, answers=answers) for item in parts]


def text(items: list[tuple[int, Part]], index: int = 0) -> str:
    return "".join(part.text for answer, part in items if answer == index)


def gathered(*coroutines: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, list[Any]]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*coroutines, return_exceptions=True)

    return gather()


def test_requests_are_written_and_questions_answered(start: Callable[..., Worker], loop: LoopThread) -> None:
    worker = start()
    assert worker.facts == {"slots": 2}
    one, two, three = loop.run(
        gathered(write(worker, "u"), write(worker, "a", max_tokens=3), write(worker, "c", 2, max_tokens=1))
    )
    assert (text(one), one[-1][1].finish_reason) == ("vwxyz", "stop")
    assert (text(two), two[-1][1].finish_reason) == ("bcd", "length")
    assert (text(three, 0), text(three, 1)) == ("d", "d")
    stats = worker.stats()
    assert (stats.running, stats.waiting, stats.prompt_tokens, stats.output_tokens) == (0, 0, 3, 6 + 3 + 2)
    assert loop.run(worker.ask("held")) == 0
    with pytest.raises(RequestRejected, match="Nothing to go on from"):
        loop.run(write(worker, ""))
    with pytest.raises(RequestRejected, match="no letter comes after a question mark"):
        loop.run(write(worker, "?"))
    assert text(loop.run(write(worker, "x"))) == "yz"


def test_a_closed_stream_leaves_its_slot_and_the_most_urgent_takes_it(
    start: Callable[..., Worker], loop: LoopThread
) -> None:
    worker = start(slots=1, step_s=0.01)

    async def leave() -> None:
        first = worker.generate(Work(prompt_ids=(ord("a"),)))
        await anext(first)
        late = asyncio.create_task(write(worker, "x", priority=10))
        soon = asyncio.create_task(write(worker, "y", priority=-10))
        while worker.stats().waiting < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert worker.stats().running == 1
        await first.aclose()
        assert (text(await soon), text(await late)) == ("z", "yz")
        assert await worker.ask("order") == [(0, 0), (2, 0), (1, 0)]

    loop.run(leave())
    assert worker.stats().running == 0


def test_the_death_of_the_process_ends_what_is_pending(
    start: Callable[..., Worker], loop: LoopThread
) -> None:
    worker = start(step_s=0.01)
    began, died = loop.run(gathered(write(worker, "a", ignore_eos=True), write(worker, "!")))
    assert isinstance(began, EngineDied)
    assert isinstance(died, EngineDied)
    with pytest.raises(EngineDied):
        worker.check()
    with pytest.raises(EngineDied):
        loop.run(write(worker, "a"))
    with pytest.raises(EngineDied):
        loop.run(worker.ask("held"))
    loop.run(worker.close())
    loop.run(worker.close())


def test_closing_ends_the_process_and_what_is_pending(start: Callable[..., Worker], loop: LoopThread) -> None:
    worker = start(step_s=0.01)
    process = psutil.Process(loop.run(worker.ask("pid")))
    pending = loop.spawn(write(worker, "a", ignore_eos=True, max_tokens=60))
    while not worker.stats().running:
        time.sleep(0.01)
    loop.run(worker.close())
    with pytest.raises(EngineDied, match="unloaded"):
        pending.result(5)
    assert not process.is_running()
    worker.check()


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("ours", "There is no pencil. Buy one."),
        ("theirs", "RuntimeError: the pencil broke"),
        ("crash", "process ended while it loaded"),
    ],
)
def test_a_load_that_fails_says_why(start: Callable[..., Worker], fail: str, said: str) -> None:
    with pytest.raises(EngineLoadError, match=said):
        start(fail=fail)


def written(prompt: str, tokens: str | list[int], **params: Any) -> tuple[list[str], str | None]:
    writer = Writer(Work(prompt_ids=tuple(map(ord, prompt)), params=params), Letters())
    texts, reason = [], None
    for token in tokens:
        part = writer.take(Token(token if isinstance(token, int) else ord(token)))
        texts.append(part.text)
        reason = part.finish_reason
        if reason:
            break
    return texts, reason


def test_text_that_may_become_a_stop_is_held_back() -> None:
    assert written("a", "bcXYd", stop=["XYZ"]) == (["", "", "b", "c", "X"], None)
    assert written("a", "bcXYZd", stop=["XYZ", "Q"]) == (["", "", "b", "c", ""], "stop")
    assert written("a", "bcXYZd", stop=["XYZ"], include_stop_str_in_output=True)[0] == list("bcXYZ")
    assert written("a", "bQcQ", stop=["Q"], min_tokens=2) == (["b", "Q", "c", ""], "stop")


def test_end_tokens_end_the_answer_and_are_left_out() -> None:
    assert written("a", [98, 0, 99]) == (["b", ""], "stop")
    assert written("a", [98, 0, 99], ignore_eos=True, max_tokens=3) == (["b", "", "c"], "length")
    assert written("a", [98, 0], include_stop_str_in_output=True, skip_special_tokens=False) == (
        ["b", "<end>"],
        "stop",
    )
    assert written("a", [98, 99], stop_token_ids=[99]) == (["b", ""], "stop")
    assert written("a" * 62, "bcd") == (["b", "c"], "length")


class Bytes(Letters):
    """Tokens are bytes: a character may take several."""

    def decode(self, token_ids: Any, *, special: bool) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


def test_an_incomplete_character_waits_for_its_rest() -> None:
    data = "né漢".encode()
    writer = Writer(Work(prompt_ids=(97,), params={"max_tokens": len(data)}), Bytes())
    assert [writer.take(Token(byte)).text for byte in data] == ["n", "", "é", "", "", "漢"]
    cut = Writer(Work(prompt_ids=(97,), params={"max_tokens": 2}), Bytes())
    assert [cut.take(Token(byte)).text for byte in data[:2]] == ["n", "\ufffd"]
