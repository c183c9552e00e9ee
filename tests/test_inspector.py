"""What the model reads, token by token, with what did not fit."""

from dataclasses import replace

import pytest

from core.engines.scripted import ScriptedEngine
from core.engines.tokenizer import Tokenizer
from core.errors import RequestRejected
from core.inspector import inspect
from core.prompt_styles import ALPACA, with_stops
from core.types import EngineSpec, Message

CHAT = [Message("system", "S"), Message("user", "Q one"), Message("assistant", "A"), Message("user", "N")]


def engine(context=8192):
    return ScriptedEngine(EngineSpec(engine="scripted", max_model_len=context))


def test_the_pieces_are_the_text_and_control_tokens_are_marked():
    seen = inspect(CHAT, engine(), 100)
    assert "".join(piece.text for piece in seen.pieces) == seen.text
    assert [piece.text.strip() for piece in seen.pieces if piece.special] == [
        "<system>", "<user>", "<assistant>", "<user>", "<assistant>",
    ]  # fmt: skip
    assert seen.prompt_tokens == len(seen.pieces) > 9
    assert (seen.context_tokens, seen.answer_tokens, seen.dropped) == (8192, 100, ())


def test_options_of_the_template_are_seen():
    made = engine()
    assert "no-thinking" not in inspect(CHAT, made, 10).text
    seen = inspect(CHAT, made, 10, options={"enable_thinking": False}, continued="Well")
    assert seen.text.endswith("<no-thinking>\nWell")
    assert seen.template == made.chat_template and "enable_thinking" in seen.template


def test_each_style_shows_what_made_the_text():
    assert inspect(CHAT, engine(), 10, style="completion").template is None
    assert (
        inspect(CHAT, engine(), 10, style="Alpaca").template == ALPACA.system + ALPACA.user + ALPACA.assistant
    )
    made = engine()
    made.info = replace(made.info, has_chat_template=False)
    assert inspect(CHAT, made, 10).template is None


def test_what_did_not_fit_and_what_is_left_for_the_answer_is_told():
    history = [Message(role, f"{n} " + "word " * 8) for n, role in enumerate(["user", "assistant"] * 10)]
    seen = inspect([CHAT[0], *history, CHAT[-1]], engine(context=100), 40)
    assert seen.dropped == tuple(history[: len(seen.dropped)]) and seen.dropped
    assert seen.text.startswith("<system>\nS\n") and seen.answer_tokens == 40
    long = inspect([Message("user", "word " * 80)], engine(context=100), 40)
    assert long.answer_tokens == 100 - long.prompt_tokens < 40
    with pytest.raises(RequestRejected, match="too long"):
        inspect([Message("user", "word " * 100)], engine(context=100), 40)


@pytest.mark.engine
def test_chatml_is_what_a_model_trained_on_it_reads(embedded_model):
    """SmolLM2's own template is ChatML; its marks are control tokens, so the stop needs its id."""
    tokenizer = Tokenizer("embedded", embedded_model)
    made = engine()
    for name in ("encode", "pieces", "render_chat", "chat_template"):
        setattr(made, name, getattr(tokenizer, name))
    own, wrapped = inspect(CHAT, made, 10), inspect(CHAT, made, 10, style="ChatML")
    assert own.pieces == wrapped.pieces and own.text == wrapped.text
    assert [piece.text for piece in own.pieces if piece.special] == ["<|im_start|>", "<|im_end|>"] * 4 + [
        "<|im_start|>"
    ]
    (end,) = tokenizer.encode(["<|im_end|>"])
    assert with_stops({}, made, "ChatML") == {"stop": ["<|im_end|>"], "stop_token_ids": end}
