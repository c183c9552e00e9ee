"""A deterministic engine without a model: to try a file and a template at no cost, and for tests.

The answer to a prompt is a fixed function of its text and the parameters, a
token is a word with the space before it. It obeys max_tokens, min_tokens, stop,
ignore_eos, seed, n and structures (choice, json by type), refuses prompts over the
context length as vLLM does, and
takes as long as `tokens_per_s` says (0: no time).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from core.errors import RequestRejected
from core.types import (
    Completion,
    Delta,
    EngineInfo,
    EngineSpec,
    EngineStats,
    Message,
    Request,
    Sample,
    Timing,
)

_TOKEN = re.compile(r"\s*\S+|\s+$")
_ANSWER_TOKENS = 12
_CONTEXT_TOKENS = 8192
_SLOTS = 256


class ScriptedEngine:
    """`tokens_per_s` is the speed of each request by itself; 0 answers at once."""

    def __init__(self, spec: EngineSpec, *, tokens_per_s: float = 0) -> None:
        self.spec = spec
        self.info = EngineInfo(
            model="scripted",
            revision=None,
            device="none",
            dtype="text",
            max_model_len=spec.max_model_len or _CONTEXT_TOKENS,
            max_num_seqs=spec.max_num_seqs or _SLOTS,
            batch_slots=spec.max_num_seqs or _SLOTS,
            kv_cache_tokens=None,
            kv_cache_bytes=None,
            has_chat_template=True,
            generation_config={},
            engine_version="scripted",
            settings={},
            load_s=0.0,
        )
        self._seconds_per_token = 1 / tokens_per_s if tokens_per_s else 0.0
        self._running = 0
        self._prompt_tokens = 0
        self._output_tokens = 0

    async def stream(self, request: Request) -> AsyncIterator[Delta | Completion]:
        text = request.prompt if isinstance(request.prompt, str) else self.decode(request.prompt)
        prompt_tokens = len(_TOKEN.findall(text))
        limit = self.info.max_model_len
        if prompt_tokens >= limit:
            raise RequestRejected(
                f"The prompt has {prompt_tokens} tokens; the context holds {limit}, the answer included.",
                hint="Shorten the prompt.",
            )
        sent = time.monotonic()
        first = last = None
        tokens, finish_reason = _answer(text, request.params, limit - prompt_tokens)
        self._running += 1
        self._prompt_tokens += prompt_tokens
        try:
            for token in tokens:
                if self._seconds_per_token:
                    await asyncio.sleep(self._seconds_per_token)
                last = time.monotonic()
                first = first or last
                self._output_tokens += 1
                yield Delta(token, 1, last)
        finally:
            self._running -= 1
        samples = _samples(text, request.params, limit - prompt_tokens)
        yield Completion(
            text="".join(tokens),
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            output_tokens=sum(sample.output_tokens for sample in samples) if samples else len(tokens),
            timing=Timing(sent, first, last),
            cumulative_logprob=_logprob("".join(tokens), len(tokens), request.params),
            samples=samples,
        )

    async def complete(self, request: Request) -> Completion:
        stream = self.stream(request)
        try:
            async for item in stream:
                if isinstance(item, Completion):
                    return item
        finally:
            await stream.aclose()
        raise AssertionError("the stream ends with a Completion")

    async def score(self, request: Request, choices: Sequence[str]) -> list[float]:
        text = request.prompt if isinstance(request.prompt, str) else self.decode(request.prompt)
        weights = [1 + int(_digest(f"{text}\x00{choice}")[:4], 16) for choice in choices]
        return [math.log(weight / (sum(weights) + 1)) for weight in weights]

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        return [[_to_id(token) for token in _TOKEN.findall(text)] for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(_to_token(token_id) for token_id in token_ids)

    def render_chat(self, chats: Sequence[Sequence[Message]]) -> list[str]:
        return ["".join(f"<{m.role}>\n{m.content}\n" for m in chat) + "<assistant>\n" for chat in chats]

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running, prompt_tokens=self._prompt_tokens, output_tokens=self._output_tokens
        )

    async def check(self) -> None:
        return None

    async def close(self) -> None:
        return None


def _to_id(token: str) -> int:
    """The token's bytes read as one number: no vocabulary to keep, and the same in every engine."""
    return int.from_bytes(b"\x01" + token.encode("utf-8", "surrogatepass"))


def _to_token(token_id: int) -> str:
    data = token_id.to_bytes((token_id.bit_length() + 7) // 8)
    return data[1:].decode("utf-8", "surrogatepass")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _answer(prompt: str, params: Any, room: int, sample: int = 0) -> tuple[list[str], str]:
    """The tokens of one answer and its finish reason."""
    key = f"{prompt}\x00{params.get('seed')}" if params.get("temperature", 1.0) else prompt
    digest = _digest(f"{key}\x00{sample}" if sample else key)
    if params.get("structured_outputs"):
        tokens = _TOKEN.findall(_structured(params["structured_outputs"], digest))
    else:
        echo = re.sub(r"<(system|user|assistant)>", " ", prompt).split()[-_ANSWER_TOKENS:]
        tokens = [f"scripted-{digest[:8]}", *(f" {word}" for word in echo)]
    most = min(params.get("max_tokens", 256), room)
    least = most if params.get("ignore_eos") else min(params.get("min_tokens", 0), most)
    while len(tokens) < least:
        tokens.append(f" {digest[len(tokens) % 56 :][:8]}")
    finish_reason = "length" if len(tokens) > most or params.get("ignore_eos") else "stop"
    return _cut_at_stop(tokens[:most], params, finish_reason)


def _samples(prompt: str, params: Any, room: int) -> tuple[Sample, ...]:
    """All n answers, or none when one was asked for."""
    n = params.get("n", 1)
    answers = [_answer(prompt, params, room, sample) for sample in range(n)] if n > 1 else []
    return tuple(
        Sample(
            text="".join(tokens),
            finish_reason=finish_reason,
            output_tokens=len(tokens),
            cumulative_logprob=_logprob("".join(tokens), len(tokens), params),
        )
        for tokens, finish_reason in answers
    )


def _logprob(text: str, tokens: int, params: Any) -> float | None:
    """A number below 0 that hangs on the answer; None unless it was asked for."""
    if params.get("logprobs") is None:
        return None
    return -tokens * (1 + int(_digest(text)[:4], 16)) / 65_536


def _structured(asked: Any, digest: str) -> str:
    """An answer of the shape asked for, fixed by `digest`."""
    ((kind, value),) = asked.items()
    if kind == "choice":
        return value[int(digest[:8], 16) % len(value)]
    if kind == "json_object":
        return json.dumps({"scripted": digest[:8]})
    if kind == "json":
        return json.dumps(_json_value(value, digest), ensure_ascii=False)
    raise RequestRejected(f"The scripted engine makes no answers by a {kind}.", hint="Use vLLM.")


def _json_value(schema: Any, digest: str) -> Any:
    number = int(digest[:8], 16)
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: _json_value(part, _digest(digest + name)) for name, part in properties.items()}
        case "array":
            return [_json_value(schema.get("items", {}), digest)]
        case "integer":
            return number % 100
        case "number":
            return number % 1000 / 10
        case "boolean":
            return bool(number % 2)
    return f"scripted-{digest[:8]}"


def _cut_at_stop(tokens: list[str], params: Any, finish_reason: str) -> tuple[list[str], str]:
    text = "".join(tokens)
    found = [(text.index(stop), stop) for stop in params.get("stop") or () if stop in text]
    if not found:
        return tokens, finish_reason
    at, stop = min(found)
    text = text[: at + len(stop)] if params.get("include_stop_str_in_output") else text[:at]
    return _TOKEN.findall(text), "stop"
