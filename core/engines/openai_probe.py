"""What a server with OpenAI's API can do, found out by asking it: a dozen requests of a few tokens each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from core import structured
from core.engines.openai_client import Body, Refused, Server
from core.engines.openai_params import STANDARD, VLLM_ONLY, Capabilities, Reader
from core.errors import EngineLoadError

_QUESTION = {"role": "user", "content": "Name a colour."}
_STORY = {"role": "user", "content": "Tell me a story of a fox."}
_CHOICES = ("quokka", "zebu")
_HOT = 2.0
_LOOKED_AT_TOKENS = 12
# values that are not the parameters' own: what is at rest may be passed over
_PROBED: Mapping[str, Any] = {
    "temperature": 0.5, "top_p": 0.9, "seed": 1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
    "stop": ["\u2603"], "logit_bias": {"1": 0.1},
}  # fmt: skip
_UNSEEN = "This server is not vLLM: it may pass over this parameter without a word."


async def find_out(server: Server, model: str) -> Capabilities:
    """Raises EngineLoadError when the model answers nothing, RequestRejected and EngineDied as `Server`."""
    asking = _Asking(server, model)
    await asking.begin()
    logprobs, usage, shapes, refused, (context, scores), priority, version = await asyncio.gather(
        asking.gives_logprobs(),
        asking.gives_usage(),
        asking.structures(),
        asking.refused(),
        asking.gives_tokens(),
        asking.takes_priority(),
        asking.version(),
    )
    structures, in_format, end_ids = shapes
    return Capabilities(
        is_vllm=asking.is_vllm,
        chat=asking.chat is not None,
        completion=asking.completion,
        context=context or None,
        tokens=context is not None,
        scores=scores,
        logprobs=logprobs,
        end_ids=end_ids,
        structures=structures,
        schema_in_response_format=in_format,
        refused=refused,
        max_tokens=asking.max_tokens,
        priority=priority,
        usage_in_stream=usage,
        version=version,
    )


class _Asking:
    """`chat` is the reply to a chat, None where the model takes none."""

    def __init__(self, server: Server, model: str) -> None:
        self._server = server
        self._model = model
        self.chat: Mapping[str, Any] | None = None
        self.completion = False
        self.is_vllm = False
        self.max_tokens = "max_tokens"

    async def begin(self) -> None:
        """What the others build on: which of the two ways of asking there are, and whether it is vLLM."""
        why = None
        # a server that is strict refuses what it doesn't know; newer models of OpenAI want the other name
        for name, added in (
            ("max_tokens", {"return_token_ids": True}),
            ("max_tokens", {}),
            ("max_completion_tokens", {}),
        ):
            self.max_tokens = name
            try:
                self.chat = await self._server.post("/chat/completions", self._chat(4, **added))
                break
            except Refused as error:
                why = why or error
        plain = {"model": self._model, "prompt": "The colour of the sky is", "max_tokens": 1}
        reply = await self._try(
            "/completions", {**plain, **({"return_token_ids": True} if self.chat else {})}
        )
        reply = reply or await self._try("/completions", plain)
        self.completion = _first(reply) is not None
        seen = _first(self.chat) or _first(reply) or {}
        self.is_vllm = isinstance(seen.get("token_ids"), list)
        if self.chat is None:
            self.max_tokens = "max_tokens"
        if self.chat is None and not self.completion:
            raise EngineLoadError(f"{self._model} answers nothing: {why.message}", hint=why.hint) from why

    def _chat(self, most: int, message: Mapping[str, str] = _QUESTION, **values: Any) -> dict[str, Any]:
        return {"model": self._model, "messages": [message], self.max_tokens: most, **values}

    def _any(self, most: int, **values: Any) -> tuple[str, dict[str, Any]]:
        """A request in a way that the model takes."""
        if self.chat is not None:
            return "/chat/completions", self._chat(most, **values)
        plain = {"model": self._model, "prompt": "The colour of the sky is", "max_tokens": most}
        return "/completions", {**plain, **values}

    async def _try(self, path: str, body: Body) -> dict[str, Any] | None:
        """The reply, None where the server refuses."""
        try:
            return await self._server.post(path, body)
        except Refused:
            return None

    async def gives_logprobs(self) -> bool:
        if self.chat is not None:
            asked = self._any(1, logprobs=True, top_logprobs=2)
        else:
            asked = self._any(1, logprobs=2)
        reply = await self._try(*asked)
        seen = Reader(2, 0.0).add(reply, 0.0) if reply is not None else None
        return seen is not None and bool(seen.logprobs)

    async def gives_usage(self) -> bool:
        """Whether a stream ends with the number of its tokens, when asked to."""
        path, body = self._any(1, stream_options={"include_usage": True})
        try:
            chunks = [chunk async for chunk in self._server.stream(path, body)]
        except Refused:
            return False
        return any(isinstance(chunk.get("usage"), dict) for chunk in chunks)

    async def structures(self) -> tuple[tuple[str, ...], bool, tuple[int, ...]]:
        """(kinds of structured_outputs, whether they go into response_format, the token that ended one)."""
        if self.is_vllm:
            path, body = self._any(16, structured_outputs={"choice": list(_CHOICES)}, return_token_ids=True)
            reply = await self._try(path, body)
            if reply is not None and _text(reply) in _CHOICES:
                ids = _first(reply).get("token_ids")
                # the structure leaves nothing else to the model then
                return structured.KINDS, False, tuple(ids[-1:]) if _ended(reply) else ()
        schema = {
            "type": "object",
            "properties": {"animal": {"type": "string", "enum": [_CHOICES[0]]}},
            "required": ["animal"],
            "additionalProperties": False,
        }
        shape = {"name": "answer", "schema": schema, "strict": True}
        kinds = []
        formats = {
            "json": {"type": "json_schema", "json_schema": shape},
            "json_object": {"type": "json_object"},
        }
        for kind, form in formats.items():
            # OpenAI refuses json_object where the prompt doesn't speak of JSON
            message = {"role": "user", "content": "Name a colour, as JSON."}
            body = {**self._chat(64, message), "response_format": form}
            reply = await self._try("/chat/completions", body) if self.chat is not None else None
            found = _json(_text(reply)) if reply is not None else None
            if found == {"animal": _CHOICES[0]} or (kind == "json_object" and isinstance(found, dict)):
                kinds.append(kind)
        return tuple(kinds), True, ()

    async def refused(self) -> dict[str, str]:
        """Each parameter that does nothing there, with the reason."""
        beams = "Beam search is not asked of a server."
        refused = {"beam_width": beams, "length_penalty": beams}
        if self.is_vllm:
            return refused
        for name in await self._refused_of(STANDARD):
            refused[name] = f"{self._server.host} refuses this parameter for {self._model}."
        refused |= dict.fromkeys(VLLM_ONLY, _UNSEEN)
        for name in await self._acting():
            del refused[name]
        return refused

    async def _refused_of(self, names: Sequence[str]) -> list[str]:
        """Those that make the server refuse a request: halves are asked until single ones are found."""
        if await self._try(*self._any(4, **{name: _PROBED[name] for name in names})) is not None:
            return []
        if len(names) == 1:
            return list(names)
        half = len(names) // 2
        return [*await self._refused_of(names[:half]), *await self._refused_of(names[half:])]

    async def _acting(self) -> list[str]:
        """Those of top_k and min_p that do what they say: as asked here, they leave the likeliest token only.

        A server that doesn't know a parameter may take it in silence, so its answers are looked at.
        """
        asked = ({"temperature": 0}, {"temperature": _HOT, "top_k": 1}, {"temperature": _HOT, "min_p": 1.0},
                 {"temperature": _HOT, "seed": 3})  # fmt: skip
        replies = await asyncio.gather(
            *(self._try("/chat/completions", self._chat(_LOOKED_AT_TOKENS, _STORY, **one)) for one in asked)
            if self.chat is not None
            else ()
        )
        greedy, *texts, hot = [_text(reply) for reply in replies] or [None, None]
        if not greedy or hot == greedy:  # it doesn't get hot: nothing can be seen
            return []
        return [name for name, text in zip(("top_k", "min_p"), texts, strict=True) if text == greedy]

    async def gives_tokens(self) -> tuple[int | None, bool]:
        """(The context's length as /tokenize says it, whether a prompt's own tokens are scored).

        The length is 0 where it isn't said, None where text is not made into tokens and back, or where
        ids are no prompt. A router's list of models may leave the length out.
        """
        if not (self.is_vllm and self.completion):
            return None, False
        name = {"model": self._model}
        reply = await self._try(self._server.root + "/tokenize", {**name, "prompt": "Hello, world"})
        ids = reply.get("tokens") if reply else None
        if not isinstance(ids, list) or not ids:
            return None, False
        back = await self._try(self._server.root + "/detokenize", {**name, "tokens": ids})
        if not back or "Hello, world" not in str(back.get("prompt")):
            return None, False
        said = reply.get("max_model_len")
        context = said if type(said) is int and 0 < said < 1 << 31 else 0
        asked = {**name, "prompt": ids, "max_tokens": 1}
        scored = await self._try("/completions", {**asked, "prompt_logprobs": 0})
        if scored is not None:
            return context, isinstance(_first(scored).get("prompt_logprobs"), list)
        return (context if await self._try("/completions", asked) is not None else None), False

    async def takes_priority(self) -> bool:
        """vLLM does where it was started with --scheduling-policy priority."""
        return self.is_vllm and await self._try(*self._any(1, priority=1)) is not None

    async def version(self) -> str:
        reply = await self._server.get("/version") if self.is_vllm else None
        version = reply.get("version") if isinstance(reply, dict) else None
        return version[:60] if isinstance(version, str) else ""


def _first(reply: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    choices = reply.get("choices") if reply else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _text(reply: Mapping[str, Any] | None) -> str | None:
    choice = _first(reply)
    if choice is None:
        return None
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else None


def _ended(reply: Mapping[str, Any]) -> bool:
    return _first(reply).get("finish_reason") == "stop"


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None
