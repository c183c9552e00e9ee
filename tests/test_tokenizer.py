"""What a token adds to a text, with small tokenizers of both common kinds; options of chat templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.engines.tokenizer import Tokenizer
from core.errors import TemplateError
from core.types import Message

TEXTS = ("Hello world", "  two  spaces\n\tnaïve", "漢字 🙂!", "x")


@pytest.fixture(params=["byte level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """A handful of tokens; all else goes through bytes."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Rust
    from transformers import PreTrainedTokenizerFast

    if request.param == "byte level":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*alphabet, "He", "Hel", "lo", "Hello", "Ġw", "or"]
        merges = [("H", "e"), ("He", "l"), ("l", "o"), ("Hel", "lo"), ("Ġ", "w"), ("o", "r")]
        rust = Rust(models.BPE({word: number for number, word in enumerate(words)}, merges))
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        rust.decoder = decoders.ByteLevel()
    else:
        words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "l", "o", "x", "w", "▁w"]
        vocabulary = {word: number for number, word in enumerate(words)}
        rust = Rust(models.BPE(vocabulary, [("▁", "w")], byte_fallback=True, unk_token="<unk>"))
        rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        rust.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    rust.add_special_tokens([AddedToken("<|end|>", special=True)])
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood | default('calm') }}"
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|end|>", chat_template=template)
    fast.save_pretrained(tmp_path)
    return Tokenizer("tiny", tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_whole_characters_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode([text])
    pieces = tokenizer.pieces(ids)
    assert [piece.token_id for piece in pieces] == ids
    # a byte of a longer character is U+FFFD by itself
    expected = "".join(char if char.isascii() else "\ufffd" * len(char.encode()) for char in text)
    assert "".join(piece.text for piece in pieces) in (expected, " " + expected)  # sentencepiece adds one
    assert not any(piece.special for piece in pieces)


def test_a_word_keeps_the_space_before_it(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode(["x w"])
    assert [piece.text for piece in tokenizer.pieces(ids)][-1] == " w"


def test_special_tokens_are_marked_and_named(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode(["x<|end|>"])
    *_, end = tokenizer.pieces(ids)
    assert (end.token_id, end.text, end.special) == (tokenizer.end_id, "<|end|>", True)
    (beyond,) = tokenizer.pieces([100_000])
    assert (beyond.text, beyond.special) == ("", True)


def test_the_template_reads_its_options(tokenizer: Tokenizer) -> None:
    chat = [Message("user", "Hi, ")]
    assert tokenizer.render_chat([chat]) == ["Hi, calm"]
    assert tokenizer.render_chat([chat], {"mood": "merry"}) == ["Hi, merry"]
    assert "mood" in tokenizer.chat_template
    for name in ("tokenize", "chat_template", "messages"):
        with pytest.raises(TemplateError, match=name):
            tokenizer.render_chat([chat], {name: True})
