"""A GGUF file opened by llama.cpp: what it says of itself, and its tokens.

llama.cpp's own C functions are called, not llama_cpp.Llama: that class keeps one sequence, and
its tokenizer can't be used beside a running answer.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from core.errors import EngineLoadError

_SHOWN_LOG_LEVELS = (2, 3, 4)  # information, warnings, errors; not what is for debugging
_ERROR_LEVEL = 4
_ERRORS: deque[str] = deque(maxlen=20)
_KEPT: list[Any] = []  # what C code calls back must never be collected


@functools.cache
def library() -> ModuleType:
    """llama_cpp, begun once in this process. Its log goes to stderr, or nowhere in the app's own process."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    return llama_cpp


def send_log(write: Callable[[str], object]) -> None:
    """Give `write` each piece of llama.cpp's log that is no debugging output."""
    native = library()

    def receive(level: int, text: bytes, _data: object) -> None:
        if level in _SHOWN_LOG_LEVELS:
            write(text.decode("utf-8", "replace"))
        if level == _ERROR_LEVEL:
            _ERRORS.append(text.decode("utf-8", "replace").strip())

    callback = native.llama_log_callback(receive)
    _KEPT.append(callback)
    native.llama_log_set(callback, ctypes.c_void_p(0))


def errors() -> list[str]:
    """What llama.cpp has called an error since the last call."""
    found = list(_ERRORS)
    _ERRORS.clear()
    return found


def log_to_stderr() -> None:
    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    send_log(write)


class Model:
    """One GGUF file, all of it or (`vocab_only`) its tokens and metadata alone; freed with the object.

    Safe from any thread: nothing in it changes. Making one raises EngineLoadError.
    """

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        native = library()
        params = native.llama_model_default_params()
        params.vocab_only = vocab_only
        # on CPUs with AMX, weights in its own layout make the next decode crash (llama.cpp of 2026)
        params.use_extra_bufts = False
        errors()
        self.pointer = native.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            said = next((text for text in errors() if "error loading" in text), "it gave no reason")
            said = re.sub(r"^.*?error loading model: |llama_model_loader: ", "", said)
            raise EngineLoadError(
                f"llama.cpp can't read {path.name}: {said.rstrip('.')}.",
                hint="The file may be damaged, or a kind of model that this version doesn't know.",
            )
        self._free = weakref.finalize(self, native.llama_model_free, self.pointer)
        self._free.atexit = False  # the process ends anyway, and the library may have gone before
        self._native = native
        self._vocab = native.llama_model_get_vocab(self.pointer)
        self._pieces: dict[int, str] = {}
        self._metadata = self._read_metadata()
        self.vocabulary_size: int = native.llama_vocab_n_tokens(self._vocab)
        self.end_ids = frozenset(
            token for token in range(self.vocabulary_size) if native.llama_vocab_is_eog(self._vocab, token)
        )

    # What the file says

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's keys with their values as text; lists are left out."""
        return self._metadata

    @property
    def chat_template(self) -> str | None:
        text = self._native.llama_model_chat_template(self.pointer, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def trained_context(self) -> int:
        """Tokens of context that the model was made for."""
        return self._native.llama_model_n_ctx_train(self.pointer)

    @property
    def size_bytes(self) -> int:
        return self._native.llama_model_size(self.pointer)

    @property
    def dtype(self) -> str:
        """Such as "Q4_1": the last words of llama.cpp's description, which begins with kind and size."""
        buffer = ctypes.create_string_buffer(256)
        self._native.llama_model_desc(self.pointer, buffer, len(buffer))
        words = buffer.value.decode("utf-8", "replace").split()
        sizes = [place for place, word in enumerate(words) if re.fullmatch(r"[\d.?]+[KMBT]", word)]
        return " ".join(words[sizes[-1] + 1 :] if sizes else words[-1:]) or "unknown"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of 16-bit keys and values that one token of context takes, all layers counted alike."""
        native, pointer = self._native, self.pointer
        heads = max(1, native.llama_model_n_head(pointer))
        key_heads = native.llama_model_n_head_kv(pointer) or heads
        usual = native.llama_model_n_embd(pointer) // heads
        kind = self._metadata.get("general.architecture", "")
        sizes = (self._metadata.get(f"{kind}.attention.{each}_length", "") for each in ("key", "value"))
        per_head = sum(int(size) if size.isdigit() else usual for size in sizes)
        return max(1, 2 * native.llama_model_n_layer(pointer) * key_heads * per_head)

    @property
    def can_rewind(self) -> bool:
        """Whether a sequence's memory can be cut back; that of recurrent models only knows its end."""
        recurrent = self._native.llama_model_is_recurrent(self.pointer)
        return not (recurrent or self._native.llama_model_is_hybrid(self.pointer))

    @property
    def why_not(self) -> str | None:
        """Why no text can be generated with it, or None."""
        native = self._native
        if native.llama_model_has_encoder(self.pointer) or not native.llama_model_has_decoder(self.pointer):
            return "it reads text and doesn't write any, or needs an encoder"
        if native.llama_model_is_diffusion(self.pointer):
            return "it is a diffusion model"
        return None

    def _read_metadata(self) -> dict[str, str]:
        native = self._native
        found = {}
        for place in range(native.llama_model_meta_count(self.pointer)):
            key = _text(native.llama_model_meta_key_by_index, self.pointer, place)
            if not key.startswith("tokenizer.chat_template"):
                found[key] = _text(native.llama_model_meta_val_str_by_index, self.pointer, place)
        return found

    # Tokens

    @property
    def vocabulary(self) -> Any:
        """llama.cpp's own pointer."""
        return self._vocab

    @property
    def start_id(self) -> int | None:
        """The token that the model expects first; None when there is none."""
        token = self._native.llama_vocab_bos(self._vocab)
        return token if token >= 0 else None

    @property
    def end_id(self) -> int | None:
        token = self._native.llama_vocab_eos(self._vocab)
        return token if token >= 0 else None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids. Names of control tokens in the text are those tokens."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (self._native.llama_token * room)()
            count = self._native.llama_tokenize(
                self._vocab, data, len(data), tokens, room, add_special_tokens, True
            )
            if count >= 0:
                return tokens[:count]
            room = -count

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        """Text of tokens; U+FFFD where a character is incomplete or a token is none of the model's."""
        known = [token for token in token_ids if 0 <= token < self.vocabulary_size]
        tokens = (self._native.llama_token * len(known))(*known)
        room = 16 * len(known) + 16
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = self._native.llama_detokenize(
                self._vocab, tokens, len(known), buffer, room, False, special
            )
            if size >= 0:
                return buffer.raw[:size].decode("utf-8", "replace")
            room = -size

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token by itself: incomplete characters are U+FFFD, control tokens their names."""
        for token in token_ids:
            if token not in self._pieces:
                self._pieces[token] = self._read_piece(token)
        return [self._pieces[token] for token in token_ids]

    def is_special(self, token: int) -> bool:
        if not 0 <= token < self.vocabulary_size:
            return True
        return bool(self._native.llama_vocab_is_control(self._vocab, token))

    def _read_piece(self, token: int) -> str:
        if not 0 <= token < self.vocabulary_size:
            return ""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = self._native.llama_token_to_piece(self._vocab, token, buffer, room, 0, True)
            if size >= 0:
                return buffer.raw[:size].decode("utf-8", "replace")
            room = -size


def _text(read: Callable[..., int], pointer: Any, place: int) -> str:
    buffer = ctypes.create_string_buffer(512)
    read(pointer, place, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
