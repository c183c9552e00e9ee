"""A model's own tokenizer and chat template, for engines whose tokens are known here."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import EngineLoadError, TemplateError
from core.types import Message, TokenPiece


class Tokenizer:
    """The tokenizer and chat template of the model in `folder`, safe from any thread.

    `name` is for messages. Making one raises EngineLoadError.
    """

    def __init__(self, name: str, folder: Path, *, trust_remote_code: bool = False) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (ValueError, OSError, KeyError, ImportError) as error:
            said = str(error).strip().partition("\n")[0]
            raise EngineLoadError(
                f"{name}'s tokenizer can't be loaded: {said}",
                hint="The folder needs tokenizer.json, or what its kind of tokenizer is made from.",
            ) from error
        # The Rust tokenizer itself takes many texts at once, on all cores and from many threads;
        # the wrapper around it sets state on each call, and fails when two threads do so.
        self._fast = getattr(self._tokenizer, "backend_tokenizer", None)
        self._lock = threading.Lock()
        self._name = name
        self._texts: dict[int, str] = {}
        self._special: dict[int, str] = {
            number: token.content
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
        }
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()

    @property
    def inner(self) -> Any:
        """That of transformers, for what looks at its vocabulary."""
        return self._tokenizer

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def chat_template(self) -> str | None:
        """The template that `render_chat` uses: the one named default where there are several."""
        template = self._tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @property
    def size(self) -> int:
        """Tokens of the vocabulary, special ones too; ids are below it."""
        return len(self._tokenizer)

    @property
    def end_id(self) -> int | None:
        """The token that ends a text; None when there is none."""
        return self._tokenizer.eos_token_id

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        if self._fast is not None:
            encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]
        with self._lock:
            return self._tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of one prompt: with the model's special tokens, unless a chat template has put them there."""
        start = self._tokenizer.bos_token
        has_start = bool(start) and text.startswith(start)
        return self.encode([text], add_special_tokens=not has_start)[0]

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text; control tokens are left out of it unless `special`."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=not special)

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        """Each token by itself. Models may have more than their tokenizer: those are special and empty."""
        beyond = len(self._tokenizer)
        return [
            TokenPiece(token, text, special=token in self._special or token >= beyond)
            for token, text in zip(token_ids, self.texts(token_ids), strict=True)
        ]

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to a text: incomplete characters are U+FFFD, special tokens their names."""
        missing = list({token for token in token_ids if token not in self._texts})
        if missing:
            # Behind another token, as most decoders leave out the space that a text begins with.
            (anchor,) = (ids[-1] for ids in self.encode(["a"]))
            (before, *both) = self._decode_all([[anchor], *([anchor, token] for token in missing)])
            for token, text in zip(missing, both, strict=True):
                self._texts[token] = self._special.get(token, text[len(before) :])
        return [self._texts[token] for token in token_ids]

    def _decode_all(self, sequences: list[list[int]]) -> list[str]:
        if self._fast is not None:
            return self._fast.decode_batch(sequences, skip_special_tokens=False)
        with self._lock:
            return [self._tokenizer.decode(ids, skip_special_tokens=False) for ids in sequences]

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Raises TemplateError."""
        from jinja2 import TemplateError as JinjaError

        if not self.has_chat_template:
            raise TemplateError(
                f"{self._name} has no chat template.",
                hint="It is a base model: send it plain text, or load an instruct model.",
            )
        if not chats:
            return []
        conversations = [[message.as_dict() for message in chat] for chat in chats]
        variables = {"add_generation_prompt": True, **(options or {})}
        self._check_variables(variables)
        try:
            return self._tokenizer.apply_chat_template(conversations, tokenize=False, **variables)
        except (JinjaError, ValueError, TypeError) as error:
            raise TemplateError(
                f"{self._name}'s chat template refuses these messages: {error}",
                hint="Some models take no system prompt, or want user and assistant to take turns.",
            ) from error

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        """What the tokenizer's own method takes is no variable of the template, but for these few."""
        own = set(inspect.signature(self._tokenizer.apply_chat_template).parameters) | {"messages"}
        taken = sorted(
            own.difference(("tools", "documents", "add_generation_prompt")).intersection(variables)
        )
        if taken:
            raise TemplateError(
                f"{taken[0]!r} is no option of a chat template.",
                hint="Give variables that the template reads.",
            )


def end_ids(tokenizer: Tokenizer, generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's, and those the model's makers add."""
    added = generation_config.get("eos_token_id")
    ids = [tokenizer.end_id, *(added if isinstance(added, list) else [added])]
    return tuple(dict.fromkeys(token for token in ids if token is not None))
