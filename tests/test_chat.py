"""Conversations: what is kept, and what becomes of an answer that is stopped, fails or outlives its app."""

import os
import threading
import time
from dataclasses import replace

import psutil
import pytest
from waiting import until

from core.chat import Chats, title_of
from core.chat_templates import fit
from core.conversations import Conversations, NewMessage
from core.engines import scripted
from core.engines.scripted import ScriptedEngine
from core.errors import EngineDied, RequestRejected, WorkbenchError
from core.runtime import Runtime
from core.store import this_process
from core.transcripts import Transcript
from core.types import EngineSpec, Message

ENDLESS = {"ignore_eos": True, "max_tokens": 8000}


@pytest.fixture
def chats(runtime, store):
    chats = Chats(runtime, store)
    yield chats
    chats.close()


def begin(chats, **values):
    return chats.create(**values).conversation_id


def ended(chats, conversation_id):
    """The last message of the branch that is shown, once nothing is generated any more."""
    until(lambda: not chats.live(conversation_id))
    return shown(chats, conversation_id)[-1]


def shown(chats, conversation_id):
    return [turn.message for turn in chats.conversations.thread(conversation_id)]


def only(live):
    """The one answer of these that are being generated; None while there is none."""
    return next(iter(live.values()), None)


def grown(chats, conversation_id):
    """Wait for the first text of an answer."""
    return until(lambda: (live := only(chats.live(conversation_id))) and live.text and live)


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


def test_regenerate_replaces_the_last_answer_only(chats):
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


def generating(store, owner):
    """A conversation whose answer a process with these details was at."""
    conversations = Conversations(store)
    conversation = conversations.add().conversation_id
    half = NewMessage("assistant", "Half an", "generating", owner)
    conversations.append(conversation, None, [NewMessage("user", "hi")], [half])
    return conversation


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


# -- fitting a conversation into the context -------------------------------------


def engine(context=8192, template=True):
    made = ScriptedEngine(EngineSpec(engine="scripted", max_model_len=context))
    made.info = replace(made.info, has_chat_template=template)
    return made


def conversation(turns, words=8):
    roles = ["user", "assistant"] * turns
    history = [Message(role, f"{index} " + "word " * words) for index, role in enumerate(roles)]
    return [Message("system", "Be kind."), *history, Message("user", "the newest")]


def test_fit_keeps_system_and_newest_turns():
    made = engine(context=100)
    fitted = fit(conversation(10), made, max_tokens=40)
    text = made.decode(fitted.token_ids)
    assert text.startswith("<system>\nBe kind.\n<user>") and "the newest" in text
    assert fitted.tokens <= 60 and fitted.dropped_turns > 0
    # one more pair of turns would have been too much
    more = [Message("system", "Be kind."), *conversation(10)[1 + fitted.dropped_turns - 2 :]]
    assert len(made.encode(made.render_chat([more]))[0]) > 60


def test_fit_drops_nothing_that_fits():
    fitted = fit(conversation(10), engine(), max_tokens=256)
    assert fitted.dropped_turns == 0


def test_a_huge_max_tokens_does_not_cost_the_whole_memory():
    fitted = fit(conversation(2), engine(context=200), max_tokens=100_000)
    assert fitted.dropped_turns == 0


def test_a_newest_message_that_leaves_little_room_is_still_asked():
    made = engine(context=50)
    fitted = fit([*conversation(3)[:-1], Message("user", "word " * 40)], made, max_tokens=30)
    assert fitted.dropped_turns == 6 and 40 < fitted.tokens < 50


def test_fit_without_chat_template_is_plain_text():
    made = engine(template=False)
    messages = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A"), Message("user", "N")]
    assert made.decode(fit(messages, made, 10).token_ids) == "S\n\nQ\n\nA\n\nN"


def test_fit_refuses_what_can_never_fit():
    with pytest.raises(RequestRejected, match="the context holds 50"):
        fit([Message("user", "word " * 60)], engine(context=50), max_tokens=10)
    with pytest.raises(RequestRejected, match="no message"):
        fit([Message("system", "S")], engine(), max_tokens=10)


def test_titles_are_one_short_line():
    assert title_of(" a\n b ") == "a b"
    assert len(title_of("word " * 50)) <= 60 and title_of("word " * 50).endswith("…")
