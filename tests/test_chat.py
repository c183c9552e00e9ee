"""Conversations: what is kept, and what becomes of an answer that is stopped, fails or outlives its app."""

import os
import threading
import time

import psutil
import pytest
from chatting import ENDLESS, begin, ended, generating, grown, only, shown
from waiting import until

from core import chat
from core.chat import Chats
from core.conversations import title_of
from core.engines import scripted
from core.engines.scripted import ScriptedEngine
from core.errors import EngineDied, WorkbenchError
from core.runtime import Runtime
from core.store import this_process
from core.transcripts import Transcript
from core.types import EngineSpec, Message


@pytest.fixture
def chats(runtime, store):
    chats = Chats(runtime, store)
    yield chats
    chats.close()


def test_an_answer_is_kept_with_its_figures(chats):
    conversation = begin(chats, system="Be brief.")
    chats.send(conversation, "What is\na KV cache?", {"temperature": 0, "max_tokens": 5})
    answer = ended(chats, conversation)
    assert [m.role for m in shown(chats, conversation)] == ["user", "assistant"]
    assert answer.state == "complete" and answer.content.startswith("scripted-")
    details = answer.details
    assert details["output_tokens"] == 5 and details["finish_reason"] == "length"
    assert details["prompt_tokens"] > 5 and details["dropped_turns"] == 0 and details["error"] == ""
    assert details["ttft_s"] > 0 and details["output_tokens_per_s"] > 0
    assert details["params"] == {"temperature": 0, "max_tokens": 5} and details["model"] == "scripted"
    assert chats.conversations.get(conversation).title == "What is a KV cache?"


def test_the_model_sees_the_conversation_so_far(chats):
    conversation = begin(chats)
    chats.send(conversation, "My name is Ada.", {})
    ended(chats, conversation)
    chats.send(conversation, "Who?", {})
    second = ended(chats, conversation)
    alone = begin(chats)
    chats.send(alone, "Who?", {})
    assert ended(chats, alone).details["prompt_tokens"] < second.details["prompt_tokens"]


def test_stop_keeps_the_text_and_frees_the_engine(chats, runtime):
    conversation = begin(chats)
    chats.send(conversation, "Go on for ever.", ENDLESS)
    live = grown(chats, conversation)
    assert live.phase == "generating" and runtime.engine.stats().running == 1
    chats.stop(conversation)
    answer = ended(chats, conversation)
    assert answer.state == "stopped" and answer.content.startswith(live.text)
    assert answer.details["finish_reason"] == "abort" and 0 < answer.details["output_tokens"] < 8000
    until(lambda: runtime.engine.stats().running == 0)


def test_stop_right_after_start_leaves_nothing_generating(chats):
    conversation = begin(chats)
    chats.send(conversation, "Never mind.", ENDLESS)
    chats.stop(conversation)
    assert ended(chats, conversation).state == "stopped"


def test_stopping_one_conversation_lets_the_other_go_on(chats):
    one, other = begin(chats), begin(chats)
    chats.send(one, "one", ENDLESS)
    chats.send(other, "other", {})
    grown(chats, one)
    chats.stop(one)
    assert ended(chats, other).state == "complete"
    assert ended(chats, one).state == "stopped"


def test_an_error_in_one_conversation_lets_the_other_go_on(chats):
    one, other = begin(chats), begin(chats)
    chats.send(one, "Go on.", ENDLESS)
    before = grown(chats, one).text
    chats.send(other, "word " * 9000, {})
    assert ended(chats, other).state == "error"
    until(lambda: len(only(chats.live(one)).text) > len(before))


def test_regenerate_answers_the_last_question_again(chats):
    conversation = begin(chats)
    chats.send(conversation, "first", {})
    first = ended(chats, conversation)
    chats.send(conversation, "second", {})
    before = ended(chats, conversation)
    chats.regenerate(before.message_id, {"seed": 7})
    after = ended(chats, conversation)
    messages = shown(chats, conversation)
    assert [m.role for m in messages] == ["user", "assistant"] * 2
    assert messages[1] == first and after.message_id != before.message_id
    assert after.content != before.content and after.details["params"] == {"seed": 7}


def test_regenerate_without_a_question_says_so(chats):
    greeting = Transcript(messages=(Message("assistant", "Hello!"),))
    conversation = chats.conversations.add_from(greeting).conversation_id
    with pytest.raises(WorkbenchError, match="nothing to answer"):
        chats.regenerate(shown(chats, conversation)[-1].message_id, {})


def test_a_conversation_answers_one_message_at_a_time(chats):
    conversation = begin(chats)
    chats.send(conversation, "first", ENDLESS)
    with pytest.raises(WorkbenchError, match="being answered"):
        chats.send(conversation, "second", {})
    assert len(shown(chats, conversation)) == 2


def test_clear_while_answering_stops_and_removes_everything(chats, runtime):
    conversation = begin(chats)
    chats.send(conversation, "Go on.", ENDLESS)
    grown(chats, conversation)
    chats.clear(conversation)
    assert not chats.live(conversation) and shown(chats, conversation) == []
    until(lambda: runtime.engine.stats().running == 0)
    chats.send(conversation, "Again", {})
    assert ended(chats, conversation).state == "complete"
    assert len(shown(chats, conversation)) == 2 and chats.conversations.get(conversation).title == "Again"


def test_text_is_in_the_store_while_the_answer_grows(chats):
    conversation = begin(chats)
    chats.send(conversation, "Go on.", ENDLESS)
    kept = until(lambda: (m := shown(chats, conversation)[-1]).content and m)
    assert kept.state == "generating" and chats.live(conversation)


def test_closing_the_app_keeps_the_text_as_interrupted(chats):
    conversation = begin(chats)
    chats.send(conversation, "Go on.", ENDLESS)
    text = grown(chats, conversation).text
    chats.close()
    answer = shown(chats, conversation)[-1]
    assert answer.state == "interrupted" and answer.content.startswith(text)


def test_after_a_crash_the_answer_is_interrupted_and_its_text_is_there(runtime, store):
    dead = generating(store, {"owner_pid": 2**22 + 1, "owner_started": 1.0})
    reused_pid = generating(store, {"owner_pid": os.getpid(), "owner_started": 1.0})
    ours = generating(store, this_process())  # of an app that was closed in this process
    chats = Chats(runtime, store)
    for conversation in (dead, reused_pid, ours):
        answer = shown(chats, conversation)[-1]
        assert (answer.state, answer.content) == ("interrupted", "Half an")


def test_an_answer_is_interrupted_as_soon_as_its_process_is_gone(chats, store):
    conversation = generating(store, {"owner_pid": 2**22 + 1, "owner_started": 1.0})
    assert shown(chats, conversation)[-1].state == "interrupted"


def test_answers_of_another_living_process_are_left_alone(runtime, store):
    parent = psutil.Process(os.getppid())
    conversation = generating(store, {"owner_pid": parent.pid, "owner_started": parent.create_time()})
    chats = Chats(runtime, store)
    assert shown(chats, conversation)[-1].state == "generating"


def test_a_message_waits_for_an_engine_that_loads(settings, store, monkeypatch):
    may_load = threading.Event()

    class SlowToLoad(ScriptedEngine):
        def __init__(self, spec, **options):
            assert may_load.wait(20)
            super().__init__(spec, **options)

    monkeypatch.setattr(scripted, "ScriptedEngine", SlowToLoad)
    runtime = Runtime(settings)
    try:
        runtime.load(EngineSpec(engine="scripted"))
        chats = Chats(runtime, store)
        conversation = begin(chats)
        chats.send(conversation, "Are you there?", {})
        time.sleep(0.2)
        assert only(chats.live(conversation)).phase == "waiting"
        may_load.set()
        assert ended(chats, conversation).state == "complete"
    finally:
        may_load.set()
        runtime.close()


def test_without_an_engine_the_answer_says_why(settings, store):
    runtime = Runtime(settings)
    try:
        chats = Chats(runtime, store)
        conversation = begin(chats)
        chats.send(conversation, "Are you there?", {})
        answer = ended(chats, conversation)
        assert answer.state == "error" and "No model is loaded" in answer.details["error"]
    finally:
        runtime.close()


def test_an_engine_that_dies_leaves_text_and_cause(settings, store, monkeypatch):
    class Dies(ScriptedEngine):
        async def stream(self, request):
            async for item in super().stream(request):
                yield item
                raise EngineDied("The engine's process ended.", hint="It is being restarted.")

    monkeypatch.setattr(scripted, "ScriptedEngine", Dies)
    runtime = Runtime(settings)
    try:
        runtime.load(EngineSpec(engine="scripted"))
        chats = Chats(runtime, store)
        conversation = begin(chats)
        chats.send(conversation, "Are you there?", {})
        answer = ended(chats, conversation)
        assert answer.state == "error" and answer.content.startswith("scripted-")
        assert answer.details["error"] == "The engine's process ended. It is being restarted."
    finally:
        runtime.close()


def test_a_message_too_long_is_refused_and_does_not_spoil_the_next(settings, store):
    runtime = Runtime(settings)
    try:
        runtime.load(EngineSpec(engine="scripted", max_model_len=60))
        chats = Chats(runtime, store)
        conversation = begin(chats)
        chats.send(conversation, "word " * 100, {})
        refused = ended(chats, conversation)
        assert refused.state == "error" and "the context holds 60" in refused.details["error"]
        chats.send(conversation, "short", {})
        answer = ended(chats, conversation)
        assert answer.state == "complete" and answer.details["dropped_turns"] == 0
    finally:
        runtime.close()


def test_a_long_conversation_drops_its_oldest_turns(settings, store):
    runtime = Runtime(settings)
    try:
        runtime.load(EngineSpec(engine="scripted", max_model_len=80))
        chats = Chats(runtime, store)
        conversation = begin(chats, system="Keep this.")
        for number in range(6):
            chats.send(conversation, f"message {number}", {"max_tokens": 20})
            answer = ended(chats, conversation)
            assert answer.state == "complete"
        assert answer.details["dropped_turns"] > 0 and answer.details["dropped_turns"] % 2 == 0
        assert answer.details["prompt_tokens"] <= 60
    finally:
        runtime.close()


def test_an_answer_that_finds_the_disk_full_is_kept_when_there_is_room(chats, monkeypatch):
    monkeypatch.setattr(chat, "_SAVE_AGAIN_S", 0.01)
    is_full = True

    def update_message(message_id, **values):
        if is_full:
            raise WorkbenchError("The catalogue can't be written: database or disk is full.")
        return write(message_id, **values)

    write = chats.conversations.update_message
    monkeypatch.setattr(chats.conversations, "update_message", update_message)
    conversation = begin(chats)
    chats.send(conversation, "Hi", {"max_tokens": 3})
    until(lambda: (live := only(chats.live(conversation))) and live.output_tokens)
    time.sleep(0.2)
    assert chats.live(conversation)
    is_full = False
    answer = ended(chats, conversation)
    assert answer.state == "complete" and answer.content


def test_titles_are_one_short_line():
    assert title_of(" a\n b ") == "a b"
    assert len(title_of("word " * 50)) <= 60 and title_of("word " * 50).endswith("…")
