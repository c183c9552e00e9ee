"""The tokens of a model on a vLLM server, through its /tokenize and /detokenize.

Each text is one small request, many of them at once; what was learned of single tokens is kept.
Blocks its thread, so that it can be called from any.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2

from core.engines.openai_params import template_options
from core.errors import EngineDied, EngineError, RequestRejected, TemplateError
from core.types import Message, TokenPiece

S = TypeVar("S")
T = TypeVar("T")

_AT_ONCE = 16
_TRIES = 3
_MOST_BYTES = 32 << 20
_RENDERED_KEPT = 4_096
_KEPT_CHARACTERS = 20_000
# The server doesn't say which tokens are special: these names are what models call theirs.
_SPECIAL = re.compile(
    r"<\|[^|<>]{1,60}\|>|<｜[^｜<>]{1,60}｜>|</?s>|<(?:pad|unk|bos|eos|mask|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)


class Tokens:
    """Of `model` at the server whose /tokenize is under `root`. Safe from any thread.

    Raises RequestRejected for what the server refuses, EngineDied where it can't be reached.
    """

    def __init__(self, root: str, key: str | None, model: str) -> None:
        self._root = root
        self._host = httpx2.URL(root).netloc.decode()
        self._model = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(
            headers={**headers, "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(60.0, connect=10.0),
            limits=httpx2.Limits(max_connections=4 * _AT_ONCE, keepalive_expiry=3.0),
        )
        self._pool = ThreadPoolExecutor(_AT_ONCE, "remote-tokens")
        self._lock = threading.Lock()
        self._rendered: OrderedDict[str, list[int]] = OrderedDict()
        self._texts: dict[int, str] = {}
        self._anchor: tuple[int, str] | None = None

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        def one(text: str) -> list[int]:
            if not add_special_tokens and (ids := self._rendered.get(text)) is not None:
                return list(ids)
            return self._tokenize({"prompt": text, "add_special_tokens": add_special_tokens})

        return self._map(one, texts)

    def decode(self, token_ids: Sequence[int]) -> str:
        return _SPECIAL.sub("", self._text(token_ids))

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        missing = list({token for token in token_ids if token not in self._texts})
        if missing:
            anchor, before = self._anchored()
            # Behind another token, as most decoders leave out the space that a text begins with.
            for token, text in zip(
                missing, self._map(lambda one: self._text([anchor, one]), missing), strict=True
            ):
                self._texts[token] = text[len(before) :]
        texts = [self._texts[token] for token in token_ids]
        return [
            TokenPiece(token, text, special=_SPECIAL.fullmatch(text) is not None)
            for token, text in zip(token_ids, texts, strict=True)
        ]

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The server makes tokens of a chat, not text: the text is read back from them, and they are kept."""

        def one(chat: Sequence[Message]) -> str:
            asked: dict[str, Any] = {"messages": [message.as_dict() for message in chat]}
            try:
                asked |= template_options(options or {})
                ids = self._tokenize(asked)
            except RequestRejected as error:
                raise TemplateError(error.message, hint=error.hint) from error
            text = self._text(ids)
            if len(text) <= _KEPT_CHARACTERS:
                with self._lock:
                    self._rendered[text] = ids
                    while len(self._rendered) > _RENDERED_KEPT:
                        self._rendered.popitem(last=False)
            return text

        return self._map(one, chats)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _anchored(self) -> tuple[int, str]:
        if self._anchor is None:
            token = self._tokenize({"prompt": "a", "add_special_tokens": False})[-1]
            self._anchor = token, self._text([token])
        return self._anchor

    def _tokenize(self, asked: Mapping[str, Any]) -> list[int]:
        ids = self._ask("/tokenize", asked).get("tokens")
        if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
            raise RequestRejected(f"{self._host} gives no tokens.", hint="Load it again.")
        return ids

    def _text(self, token_ids: Sequence[int]) -> str:
        if not token_ids:
            return ""
        text = self._ask("/detokenize", {"tokens": list(token_ids)}).get("prompt")
        if not isinstance(text, str):
            raise RequestRejected(f"{self._host} gives no text for tokens.", hint="Load it again.")
        return text

    def _ask(self, path: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._reply(path, {"model": self._model, **asked})
            except httpx2.TransportError as error:  # a connection that went stale, most likely
                if not tries_left:
                    raise EngineDied(
                        f"{self._host} can't be reached any more.", hint="The workbench waits for it."
                    ) from error
        raise AssertionError("the last try returns or raises")

    def _reply(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        received = bytearray()
        with self._client.stream("POST", self._root + path, json=body) as response:
            for chunk in response.iter_raw():
                received += chunk
                if len(received) > _MOST_BYTES:
                    raise RequestRejected(f"{self._host} sends too much.", hint="Ask for less.")
        try:
            reply = json.loads(received)
        except ValueError:
            reply = {}
        reply = reply if isinstance(reply, dict) else {}
        if response.status_code != 200:
            raise _refusal(self._host, response.status_code, reply)
        return reply

    def _map(self, function: Callable[[S], T], values: Sequence[S]) -> list[T]:
        if len(values) < 2:
            return [function(value) for value in values]
        return list(self._pool.map(function, values))


def _refusal(host: str, status: int, reply: Mapping[str, Any]) -> EngineError:
    error = reply.get("error", reply)
    told = error.get("message") if isinstance(error, dict) else None
    words = " ".join(told[:2_000].split())[:400] if isinstance(told, str) else f"HTTP {status}"
    return RequestRejected(f"{host} makes no tokens of this: {words}", hint="Change the messages.")
