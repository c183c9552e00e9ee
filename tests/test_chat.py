"""Conversations: what is kept, and what becomes of an answer that is stopped, fails or outlives its app."""

import os
import threading
import time
from dataclasses import replace

import psutil
import pytest
from waiting import until

from core.answers import in_words, read_logprobs
from core.chat import Chats, prompt_messages
from core.chat_templates import fit
from core.conversations import ChatOptions, Conversations, NewMessage, title_of
from core.engines import scripted
from core.engines.scripted import ScriptedEngine
from core.errors import EngineDied, RequestRejected, TemplateError, WorkbenchError
from core.runtime import Runtime
from core.store import this_process
from core.transcripts import Transcript
from core.types import EngineSpec, Message, Request

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


def told(chats, conversation_id, text):
    """What the model would be shown if `text` were sent now."""
    parser = chats.conversations.get(conversation_id).options.reasoning
    return prompt_messages("", shown(chats, conversation_id), text, parser)


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


# -- versions, edits, going on ---------------------------------------------------


def ids(turns):
    return [turn.message_id for turn in turns]


def test_several_answers_at_once_are_versions_with_seeds_of_their_own(chats):
    conversation = begin(chats)
    made = chats.send(conversation, "three of them", {"seed": 5, "max_tokens": 8, "n": 9}, n=3)
    ended(chats, conversation)
    last = chats.conversations.thread(conversation)[-1]
    assert last.versions == made and last.index == 0
    answers = [chats.conversations.message(one) for one in made]
    assert [answer.details["params"]["seed"] for answer in answers] == [5, 6, 7]
    assert all(answer.state == "complete" and "n" not in answer.details["params"] for answer in answers)
    assert len({answer.content for answer in answers}) == 3


def test_the_conversation_says_how_many_answers(chats):
    conversation = begin(chats, options=ChatOptions(n=2))
    assert len(chats.send(conversation, "two", {})) == 2
    ended(chats, conversation)
    assert len(chats.send(conversation, "one", {}, n=1)) == 1
    ended(chats, conversation)
    with pytest.raises(WorkbenchError, match="0 answers"):
        chats.send(conversation, "none", {}, n=0)


def test_one_of_several_answers_can_be_stopped_alone(chats):
    conversation = begin(chats)
    first, second = chats.send(conversation, "Go on.", ENDLESS, n=2)
    until(lambda: all(live.text for live in chats.live(conversation).values()))
    chats.stop(conversation, first)
    until(lambda: list(chats.live(conversation)) == [second])
    assert chats.conversations.message(first).state == "stopped"
    chats.stop(conversation)
    ended(chats, conversation)
    assert chats.conversations.message(second).state == "stopped"


def test_regenerate_keeps_what_was_there_as_another_version(chats):
    conversation = begin(chats)
    [first] = chats.send(conversation, "What?", {"seed": 1})
    ended(chats, conversation)
    chats.send(conversation, "And then?", {})
    ended(chats, conversation)
    followed = ids(shown(chats, conversation))
    [second] = chats.regenerate(first, {"seed": 2})
    assert ended(chats, conversation).message_id == second
    assert chats.conversations.thread(conversation)[-1].versions == (first, second)
    chats.select(first)
    assert ids(shown(chats, conversation)) == followed


def test_an_edited_question_is_answered_beside_the_old_one(chats):
    conversation = begin(chats)
    chats.send(conversation, "What is a cat?", {})
    old = ended(chats, conversation)
    question = shown(chats, conversation)[0]
    chats.edit(question.message_id, "What is a dog?", {})
    new = ended(chats, conversation)
    assert [turn.content for turn in shown(chats, conversation)] == ["What is a dog?", new.content]
    assert new.content != old.content and len(chats.conversations.thread(conversation)[0].versions) == 2
    chats.select(question.message_id)
    assert shown(chats, conversation) == [question, old]


def test_an_edited_answer_just_has_its_new_text_and_the_chat_goes_on_from_it(chats):
    conversation = begin(chats)
    chats.send(conversation, "Who?", {})
    old = ended(chats, conversation)
    assert chats.edit(old.message_id, "Ada.", {}) == ()
    edited = ended(chats, conversation)
    assert (edited.content, edited.state, edited.details) == ("Ada.", "complete", {"edited": True})
    assert told(chats, conversation, "Why?") == [
        Message("user", "Who?"),
        Message("assistant", "Ada."),
        Message("user", "Why?"),
    ]
    assert chats.conversations.message(old.message_id) == old


def test_a_cut_answer_goes_on_in_place(chats, runtime):
    conversation = begin(chats, options=ChatOptions(top_logprobs=2))
    chats.send(conversation, "Count.", {"max_tokens": 4, "ignore_eos": True})
    cut = ended(chats, conversation)
    assert cut.details["finish_reason"] == "length"
    chats.go_on(cut.message_id, {"max_tokens": 6, "ignore_eos": True, "temperature": 0})
    whole = ended(chats, conversation)
    assert whole.message_id == cut.message_id and len(chats.conversations.messages(conversation)) == 2
    # what was added is what the model answers to the prompt that ends with the cut answer
    prompt = runtime.engine.render_chat([[Message("user", "Count.")]])[0] + cut.content
    alone = {"max_tokens": 6, "ignore_eos": True, "temperature": 0}
    added = runtime.run(runtime.engine.complete(Request(id="alone", prompt=prompt, params=alone)))
    assert whole.content == cut.content + added.text
    assert whole.details["output_tokens"] == 10 and whole.details["part_tokens"] == 6
    assert whole.details["prompt_tokens"] == cut.details["prompt_tokens"]
    assert whole.details["ttft_s"] == cut.details["ttft_s"]
    tokens = read_logprobs(whole.details)
    assert "".join(token.text for token in tokens) == whole.content and len(tokens) == 10
    assert in_words(whole.state, whole.details) == "cut at max_tokens"


def test_an_answer_that_fails_to_go_on_keeps_what_was_there(chats, runtime):
    conversation = begin(chats, options=ChatOptions(top_logprobs=1))
    chats.send(conversation, "Count.", {"max_tokens": 4, "ignore_eos": True})
    cut = ended(chats, conversation)
    runtime.unload()
    until(lambda: runtime.status().phase == "empty")
    chats.go_on(cut.message_id, {})
    failed = ended(chats, conversation)
    assert failed.state == "error" and "No model is loaded" in failed.details["error"]
    assert failed.content == cut.content
    for name in ("output_tokens", "prompt_tokens", "ttft_s", "model", "logprobs"):
        assert failed.details[name] == cut.details[name]
    assert failed.details["output_tokens_per_s"] == pytest.approx(cut.details["output_tokens_per_s"])
    runtime.load()
    runtime.wait_ready(20)
    chats.go_on(cut.message_id, {"max_tokens": 3, "ignore_eos": True})
    whole = ended(chats, conversation)
    assert whole.state == "complete" and whole.details["output_tokens"] == 7 and whole.details["error"] == ""


def test_a_stopped_answer_goes_on_and_can_be_stopped_again(chats):
    conversation = begin(chats)
    chats.send(conversation, "Go on.", ENDLESS)
    grown(chats, conversation)
    chats.stop(conversation)
    stopped = ended(chats, conversation)
    chats.go_on(stopped.message_id, ENDLESS)
    until(lambda: len(only(chats.live(conversation)).text) > len(stopped.content))
    chats.stop(conversation)
    again = ended(chats, conversation)
    assert again.state == "stopped" and again.content.startswith(stopped.content)
    assert again.details["output_tokens"] > stopped.details["output_tokens"]


def test_what_can_not_go_on_says_so(chats):
    conversation = begin(chats)
    chats.send(conversation, "Count.", {"max_tokens": 4, "ignore_eos": True})
    cut = ended(chats, conversation)
    with pytest.raises(WorkbenchError, match="given shape"):
        chats.go_on(cut.message_id, {"structured_outputs": {"json_object": True}})
    with pytest.raises(WorkbenchError, match="came to its end"):
        chats.go_on(shown(chats, conversation)[0].message_id, {})
    chats.send(conversation, "More.", {"max_tokens": 4000})
    whole = ended(chats, conversation)
    assert whole.details["finish_reason"] == "stop"
    with pytest.raises(WorkbenchError, match="came to its end"):
        chats.go_on(whole.message_id, {})
    with pytest.raises(WorkbenchError, match="went on"):
        chats.go_on(cut.message_id, {})


@pytest.mark.parametrize("do", ["regenerate", "edit", "go_on", "branch"])
def test_an_answer_that_is_being_written_is_left_alone(chats, do):
    conversation = begin(chats)
    [answer] = chats.send(conversation, "Go on.", ENDLESS)
    with pytest.raises(WorkbenchError, match=r"being answered|not complete"):
        match do:
            case "regenerate":
                chats.regenerate(answer, {})
            case "edit":
                chats.edit(answer, "other", {})
            case "go_on":
                chats.go_on(answer, {})
            case "branch":
                chats.branch(answer)
    assert len(chats.conversations.messages(conversation)) == 2


def test_another_process_that_answers_has_the_conversation(runtime, store):
    parent = psutil.Process(os.getppid())
    conversation = generating(store, {"owner_pid": parent.pid, "owner_started": parent.create_time()})
    with pytest.raises(WorkbenchError, match="being answered"):
        Chats(runtime, store).send(conversation, "Me too.", {})


def test_blank_messages_are_refused(chats):
    conversation = begin(chats)
    with pytest.raises(WorkbenchError, match="empty"):
        chats.send(conversation, " \n", {})
    chats.send(conversation, "Hi", {})
    answer = ended(chats, conversation)
    with pytest.raises(WorkbenchError, match="empty"):
        chats.edit(answer.message_id, "", {})
    assert len(chats.conversations.messages(conversation)) == 2


def test_a_branch_is_a_conversation_of_its_own(chats):
    conversation = begin(chats)
    chats.send(conversation, "one", {})
    answer = ended(chats, conversation)
    branch = chats.branch(answer.message_id).conversation_id
    chats.send(branch, "two", {})
    ended(chats, branch)
    assert len(shown(chats, branch)) == 4 and len(shown(chats, conversation)) == 2
    chats.delete(conversation)
    assert [turn.content for turn in shown(chats, branch)][:1] == ["one"]


# -- what the model is shown -------------------------------------------------------


def test_a_style_makes_the_prompt_and_adds_its_stops(chats, runtime, monkeypatch):
    seen = []
    stream = runtime.engine.stream

    def watched(request):
        seen.append(request)
        return stream(request)

    monkeypatch.setattr(runtime.engine, "stream", watched)
    conversation = begin(chats, system="S", options=ChatOptions(style="Alpaca", top_logprobs=3))
    chats.send(conversation, "Q", {"stop": ["END"]})
    answer = ended(chats, conversation)
    prompt = runtime.engine.decode(seen[0].prompt)
    assert prompt == "S\n\n### Instruction:\nQ\n\n### Response:\n"
    assert seen[0].params["stop"] == ["END", "### Instruction:"] and seen[0].top_logprobs == 3
    assert answer.details["params"] == {"stop": ["END"]}


def test_a_style_that_was_deleted_is_said_before_anything_is_kept(chats):
    conversation = begin(chats, options=ChatOptions(style="Mine"))
    with pytest.raises(TemplateError, match="no prompt style 'Mine'"):
        chats.send(conversation, "Q", {})
    assert chats.conversations.messages(conversation) == []


def test_template_options_reach_the_template(chats, runtime, monkeypatch):
    seen = []
    render = runtime.engine.render_chat
    monkeypatch.setattr(
        runtime.engine,
        "render_chat",
        lambda chats, options=None: seen.append(options) or render(chats, options),
    )
    conversation = begin(chats, options=ChatOptions(template_options={"enable_thinking": False}))
    chats.send(conversation, "Q", {})
    ended(chats, conversation)
    assert seen == [{"enable_thinking": False}]


def test_the_model_is_not_shown_its_earlier_thoughts(chats):
    transcript = Transcript(
        messages=(Message("user", "Q"), Message("assistant", "<think>hm, hm</think>\n\nThe answer."))
    )
    conversation = chats.conversations.add_from(transcript).conversation_id
    assert told(chats, conversation, "N")[1] == Message("assistant", "The answer.")
    chats.conversations.update(conversation, options=ChatOptions(reasoning="none"))
    assert told(chats, conversation, "N")[1] == transcript.messages[1]


def test_an_answer_that_begins_inside_its_thoughts_is_known_by_its_prompt(chats, runtime, monkeypatch):
    render = runtime.engine.render_chat
    monkeypatch.setattr(
        runtime.engine, "render_chat", lambda *args: [text + "<think>\n" for text in render(*args)]
    )
    conversation = begin(chats)
    chats.send(conversation, "Q", {})
    answer = ended(chats, conversation)
    assert answer.details["begins_inside"] is True
    # cut while it thought: better all of it than nothing
    assert told(chats, conversation, "N")[1] == Message("assistant", answer.content)
    chats.conversations.update_message(answer.message_id, content="hm, hm</think>The answer.")
    assert told(chats, conversation, "N")[1] == Message("assistant", "The answer.")


# -- the tokens of an answer ---------------------------------------------------------


def test_tokens_and_their_alternatives_are_kept_also_of_a_stopped_answer(chats):
    conversation = begin(chats, options=ChatOptions(top_logprobs=3))
    chats.send(conversation, "Go on.", ENDLESS)
    grown(chats, conversation)
    chats.stop(conversation)
    stopped = ended(chats, conversation)
    tokens = read_logprobs(stopped.details)
    assert "".join(token.text for token in tokens) == stopped.content
    assert len(tokens) == stopped.details["output_tokens"]
    assert all(len(token.alternatives) == 3 and token.logprob <= 0 and token.rank >= 1 for token in tokens)
    first = tokens[0].alternatives
    assert [one.rank for one in first] == [1, 2, 3] and first[0].logprob >= first[1].logprob


def test_without_asking_no_tokens_are_kept(chats):
    conversation = begin(chats)
    chats.send(conversation, "Hi", {})
    answer = ended(chats, conversation)
    assert "logprobs" not in answer.details and read_logprobs(answer.details) == ()


def test_an_engine_that_can_not_tell_probabilities_answers_all_the_same(chats, runtime, monkeypatch):
    info = replace(runtime.engine.info, cannot={"top_logprobs": "It keeps none."})
    monkeypatch.setattr(runtime.engine, "info", info)
    conversation = begin(chats, options=ChatOptions(top_logprobs=3))
    chats.send(conversation, "Hi", {})
    answer = ended(chats, conversation)
    assert answer.state == "complete" and "logprobs" not in answer.details


def test_a_beam_search_answers_in_a_chat(chats):
    conversation = begin(chats, options=ChatOptions(top_logprobs=3))
    chats.send(conversation, "Hi", {"beam_width": 3, "max_tokens": 5})
    answer = ended(chats, conversation)
    assert answer.state == "complete" and answer.content and "logprobs" not in answer.details


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
