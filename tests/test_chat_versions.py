"""Versions, edits, branches and answers that go on."""

import os

import psutil
import pytest
from chatting import ENDLESS, begin, ended, generating, grown, only, shown, told
from waiting import until

from core.answers import in_words, read_logprobs
from core.chat import Chats
from core.conversations import ChatOptions
from core.errors import WorkbenchError
from core.types import Message, Request


@pytest.fixture
def chats(runtime, store):
    chats = Chats(runtime, store)
    yield chats
    chats.close()


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


def test_several_answers_at_once_have_their_prompt_made_once(chats, runtime, monkeypatch):
    made = []
    render = runtime.engine.render_chat
    monkeypatch.setattr(runtime.engine, "render_chat", lambda *args: made.append(args) or render(*args))
    conversation = begin(chats)
    answers = chats.send(conversation, "four of them", {}, n=4)
    ended(chats, conversation)
    assert len(made) == 1
    figures = [chats.conversations.message(one).details["prompt_tokens"] for one in answers]
    assert len(set(figures)) == 1 and figures[0] > 0


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
