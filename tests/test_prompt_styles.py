"""How a conversation becomes a prompt: styles, wrappers, cutting to the context."""

from dataclasses import replace

import pytest

from core import prompt_styles
from core.chat_templates import fit
from core.engines.scripted import ScriptedEngine
from core.errors import RequestRejected, TemplateError
from core.prompt_styles import ALPACA, CHATML, Wrapper, Wrappers
from core.types import EngineSpec, Message

CHAT = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A"), Message("user", "N")]


def engine(context=8192):
    return ScriptedEngine(EngineSpec(engine="scripted", max_model_len=context))


def wrapper(**values):
    return Wrapper(
        **{"name": "own", "system": "{content}", "user": "{content}", "assistant": "{content}"} | values
    )


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("chat", "<system>\nS\n<user>\nQ\n<assistant>\nA\n<user>\nN\n<assistant>\n"),
        ("completion", "SQAN"),
        ("Alpaca", "S\n\n### Instruction:\nQ\n\n### Response:\nA\n\n### Instruction:\nN\n\n### Response:\n"),
        (
            "ChatML",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nN<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_each_style_writes_its_text_and_nothing_else(style, text):
    made = engine()
    fitted = fit(CHAT, made, 10, style=style)
    assert fitted.text == text
    assert made.decode(fitted.token_ids) == text and fitted.dropped == ()
    assert fit(CHAT, made, 10, style=style, continued="Well, {content}").text == text + "Well, {content}"


def test_alpaca_brings_its_own_system_prompt_only_where_there_is_none():
    assert ALPACA.render([Message("user", "Q")]).startswith("Below is an instruction")
    assert "Below is" not in ALPACA.render(CHAT)
    assert CHATML.render([Message("user", "Q")]).startswith("<|im_start|>user")


def test_braces_in_messages_and_wrappers_are_just_text():
    own = wrapper(user="{x} {0} {content} {{", system="{content}")
    assert own.render([Message("user", "{content} {y")]) == "{x} {0} {content} {y {{"


def test_a_style_that_does_not_exist_is_said():
    with pytest.raises(TemplateError, match="no prompt style 'gone'"):
        fit(CHAT, engine(), 10, style="gone")
    with pytest.raises(TemplateError, match="no prompt style 'gone'"):
        prompt_styles.stops("gone", wrapper())
    assert fit(CHAT, engine(), 10, style="own", wrapper=wrapper(user="<{content}>")).text == "S<Q>A<N>"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"user": "no place"}, "user text"),
        ({"assistant": "{content}{content}"}, "assistant text"),
        ({"name": "Chat"}, "taken"),
        ({"name": " "}, "named"),
        ({"name": "a\nb"}, "named"),
    ],
)
def test_a_wrapper_that_can_not_work_is_refused(values, says):
    with pytest.raises(TemplateError, match=says):
        wrapper(**values)


def test_stops_are_the_wrappers():
    assert prompt_styles.stops("chat") == prompt_styles.stops("completion") == ()
    assert prompt_styles.stops("ChatML") == ("<|im_end|>",)
    assert prompt_styles.stops("own", wrapper(stop=("###",))) == ("###",)


def test_dropped_turns_are_named():
    history = [
        Message(role, f"{index} " + "word " * 8) for index, role in enumerate(["user", "assistant"] * 10)
    ]
    fitted = fit([*history, Message("user", "newest")], engine(context=100), 40, style="completion")
    assert fitted.dropped == tuple(history[: fitted.dropped_turns]) and fitted.dropped_turns > 0
    assert fitted.text.endswith("newest") and fitted.tokens <= 60


def test_a_continued_answer_counts_against_the_context():
    made = engine(context=50)
    assert fit([Message("user", "Q")], made, 10, continued="word " * 20).tokens > 20
    with pytest.raises(RequestRejected, match="answer so far"):
        fit([Message("user", "Q")], made, 10, continued="word " * 60)


def test_a_model_without_a_template_reads_the_contents():
    made = engine()
    made.info = replace(made.info, has_chat_template=False)
    assert fit(CHAT, made, 10).text == "S\n\nQ\n\nA\n\nN"
    assert fit(CHAT, made, 10, style="ChatML").text == CHATML.render(CHAT)


# -- one's own wrappers ------------------------------------------------------------


def test_own_wrappers_are_kept_beside_the_shipped_ones(store):
    wrappers = Wrappers(store)
    wrappers.save(wrapper(stop=("###",), default_system="D"))
    assert Wrappers(store).list() == [ALPACA, CHATML, wrapper(stop=("###",), default_system="D")]
    wrappers.save(wrapper(user="<{content}>"))
    assert wrappers.find("own") == wrapper(user="<{content}>")
    assert wrappers.find("chat") is None and wrappers.find("Alpaca") == ALPACA
    wrappers.delete("own")
    assert wrappers.list() == [ALPACA, CHATML]
    with pytest.raises(TemplateError, match="no prompt style 'own'"):
        wrappers.delete("own")


@pytest.mark.parametrize("name", ["Alpaca", "CHATML"])
def test_shipped_wrappers_stay_as_they_are(store, name):
    wrappers = Wrappers(store)
    with pytest.raises(TemplateError, match="comes with the workbench"):
        wrappers.save(wrapper(name=name))
    with pytest.raises(TemplateError, match="comes with the workbench"):
        wrappers.delete(name)


def test_stops_join_the_requests_own_and_control_tokens_stop_by_their_id():
    made = engine()
    own = wrapper(stop=("<user>", "two words", "END"))
    params = prompt_styles.with_stops({"stop": ["END", "x"], "top_k": 5}, made, "own", own)
    (mark,) = made.encode(["<user>"])
    assert params == {"stop": ["END", "x", "<user>", "two words"], "stop_token_ids": mark, "top_k": 5}
    assert prompt_styles.with_stops({"top_k": 5}, made, "chat") == {"top_k": 5}
    assert prompt_styles.with_stops({"beam_width": 2}, made, "own", own) == {"beam_width": 2}
