"""What the model is shown of a conversation, and what is kept of the tokens it writes."""

import contextlib
from dataclasses import replace

import pytest
from chatting import ENDLESS, begin, ended, grown, told

from core.answers import read_logprobs
from core.chat import Chats
from core.chat_templates import fit
from core.conversations import ChatOptions
from core.engines.scripted import ScriptedEngine
from core.errors import RequestRejected, TemplateError
from core.transcripts import Transcript
from core.types import EngineSpec, Message


@pytest.fixture
def chats(runtime, store):
    chats = Chats(runtime, store)
    yield chats
    chats.close()


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
    assert answer.state == "complete" and answer.content
    assert "".join(token.text for token in read_logprobs(answer.details)) == answer.content


def test_a_beam_search_ends_where_the_style_does(chats, runtime, monkeypatch):
    stream = runtime.engine.stream

    async def goes_on(request):
        async with contextlib.aclosing(stream(request)) as items:
            async for item in items:
                yield replace(item, text=f"{item.text}\n### Instruction:\nAnd now?")

    monkeypatch.setattr(runtime.engine, "stream", goes_on)
    conversation = begin(chats, options=ChatOptions(style="Alpaca"))
    chats.send(conversation, "Hi", {"beam_width": 3, "max_tokens": 5})
    answer = ended(chats, conversation)
    assert answer.content.endswith("\n") and "###" not in answer.content
    assert answer.details["finish_reason"] == "stop"


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
