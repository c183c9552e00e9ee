"""Servers with OpenAI's API that are not vLLM, of several kinds, on a port of this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

_STANDARD = {
    "model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop",
    "n", "presence_penalty", "frequency_penalty", "logit_bias", "response_format",
}  # fmt: skip


class FakeServer:
    """Answers each chat with `words`, a token each. What it is like is set on it, at any time.

    strict: refuses parameters that it doesn't know. honours: parameters beyond OpenAI's that act.
    asked: the JSON of every chat, oldest first. before: called with each request; what it returns is sent.
    """

    def __init__(self, http: HTTPServer, models: Sequence[Any] = ("small",)) -> None:
        self.http = http
        self.words = ["One ", "two ", "three."]
        self.strict = False
        self.honours: set[str] = set()
        self.max_tokens = "max_tokens"
        self.key: str | None = None
        self.usage = True
        self.thoughts: list[str] = []
        self.pause_s = 0.0
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.before: Callable[[Request], Response | None] = lambda request: None
        self._models = [one if isinstance(one, dict) else {"id": one} for one in models]
        http.expect_request("/v1/models").respond_with_handler(self._guarded(self._list))
        http.expect_request("/v1/chat/completions").respond_with_handler(self._guarded(self._chat))

    @property
    def base_url(self) -> str:
        return self.http.url_for("/v1")

    @property
    def chats(self) -> list[dict[str, Any]]:
        return self.asked

    def _guarded(self, answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def handle(request: Request) -> Response:
            self.paths.append(request.path)
            self.headers.append(dict(request.headers))
            if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
                given = request.headers.get("Authorization", "")
                return error(401, f"Incorrect API key provided: {given}")
            return self.before(request) or answer(request)

        return handle

    def _list(self, request: Request) -> Response:
        return reply({"object": "list", "data": self._models})

    def _chat(self, request: Request) -> Response:
        asked = request.get_json()
        self.asked.append(asked)
        known = (_STANDARD - {"max_tokens"}) | {self.max_tokens} | self.honours
        unknown = set(asked) - known
        if self.strict and unknown:
            return error(400, f"Unrecognized request argument supplied: {sorted(unknown)[0]}")
        words = self._words(asked)
        most = asked.get(self.max_tokens) or len(words)
        ending = "length" if most < len(words) else "stop"
        usage = {"prompt_tokens": 7, "completion_tokens": min(most, len(words)), "total_tokens": 0}
        usage["prompt_tokens_details"] = {"cached_tokens": 4}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(words[:most])}
            choice = {"index": 0, "message": message, "finish_reason": ending}
            return reply({"choices": [choice], "usage": usage})
        return Response(self._stream(words[:most], ending, usage), content_type="text/event-stream")

    def _words(self, asked: dict[str, Any]) -> list[str]:
        """Greedy when it must be; hot otherwise: another word for each seed."""
        schema = asked.get("response_format", {}).get("json_schema", {}).get("schema")
        if schema and "response_format" in self.honours:
            ((name, rule),) = schema["properties"].items()
            return [json.dumps({name: rule.get("enum", [1])[0]})]
        cold = asked.get("temperature", 1) < 1.5
        forced = any(name in self.honours and name in asked for name in ("top_k", "min_p"))
        return self.words if cold or forced else [f"Hot {asked.get('seed', 0)}"]

    def _stream(self, words: list[str], ending: str, usage: dict[str, Any]) -> Iterator[bytes]:
        for thought in self.thoughts:
            yield event({"choices": [{"index": 0, "delta": {"reasoning_content": thought}}]})
        for word in words:
            time.sleep(self.pause_s)
            yield event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": ending}]})
        if self.usage:
            yield event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def reply(value: Any, status: int = 200, **headers: str) -> Response:
    return Response(json.dumps(value), status, headers, content_type="application/json")


def error(status: int, message: str, **headers: str) -> Response:
    return reply({"error": {"message": message, "type": "error", "code": None}}, status, **headers)
