"""A deterministic engine without a model: to try a file and a template at no cost, and for tests.

The answer to a prompt is a fixed function of its text, the adapter and the parameters, a
token is a word with the space before it. It obeys max_tokens, min_tokens, stop,
ignore_eos, seed, n, logprobs and structured_outputs as far as a choice or a plain
JSON schema goes; a beam search answers in one piece. It refuses prompts over the context
length as vLLM does, keeps the counters of a prefix cache, and takes as long as
`tokens_per_s` says (0: no time).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.engines import scripted_answers, scripted_tokens
from core.engines.chat_prompts import chat_text
from core.engines.scripted_tokens import TOKEN
from core.errors import RequestRejected, TemplateError
from core.settings import Settings
from core.types import (
    ChatPrompt,
    Completion,
    Delta,
    EngineInfo,
    EngineSpec,
    EngineStats,
    Message,
    Request,
    Timing,
    TokenLogprob,
    TokenPiece,
)

if TYPE_CHECKING:
    import jinja2
    import numpy as np

_CONTEXT_TOKENS = 8192
_SLOTS = 256
_BLOCK_TOKENS = 16
_CACHE_BLOCKS = 4096
_CHAT_TEMPLATE = """\
{% for message in messages %}<{{ message.role }}>
{{ message.content }}
{% endfor %}{% if add_generation_prompt is not defined or add_generation_prompt %}<assistant>
{% if enable_thinking is defined and not enable_thinking %}<no-thinking>
{% endif %}{% endif %}"""


def load(spec: EngineSpec, settings: Settings, **_runtime: Any) -> ScriptedEngine:
    """Without a model there is nothing to wait for, to log or to guard."""
    return ScriptedEngine(spec, tokens_per_s=settings.scripted_tokens_per_s)


class ScriptedEngine:
    """`tokens_per_s` is the speed of each request by itself; 0 answers at once."""

    chat_template: str | None = _CHAT_TEMPLATE

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
            settings={"block_size": _BLOCK_TOKENS},
            load_s=0.0,
            vocabulary_size=scripted_tokens.WORDS,
        )
        self._seconds_per_token = 1 / tokens_per_s if tokens_per_s else 0.0
        self._cache = _PrefixCache()
        self._running = 0
        self._prompt_tokens = 0
        self._output_tokens = 0

    async def stream(self, request: Request) -> AsyncIterator[Delta | Completion]:
        if request.params.get("n", 1) > 1:
            raise RequestRejected("Only one answer can be streamed.", hint="Leave n out.")
        async with contextlib.aclosing(self._answer(request)) as items:
            async for item in items:
                yield item

    async def _answer(self, request: Request) -> AsyncIterator[Delta | Completion]:
        sent = time.monotonic()
        text, prompt_tokens = self._read(request)
        params, wanted = request.params, request.top_logprobs
        if wanted is not None:
            params = {**params, "logprobs": wanted}
        samples = scripted_answers.samples(text, params, self.info.max_model_len - prompt_tokens)
        written = TOKEN.findall(samples[0].text)
        logprobs = () if wanted is None else tuple(scripted_tokens.token_logprobs(written, wanted))
        is_text = isinstance(request.prompt, str | ChatPrompt)
        number = request.adapter.number if request.adapter else 0
        cached_tokens = self._cache.add(text if is_text else request.prompt, number)
        self._prompt_tokens += prompt_tokens
        first = last = None
        async with contextlib.aclosing(self._write(written, logprobs, "beam_width" in params)) as deltas:
            async for delta in deltas:
                last = delta.at_s
                first = first or last
                yield delta
        self._output_tokens += sum(sample.output_tokens for sample in samples[1:])
        yield Completion(
            text=samples[0].text,
            finish_reason=samples[0].finish_reason,
            prompt_tokens=prompt_tokens,
            output_tokens=sum(sample.output_tokens for sample in samples),
            timing=Timing(sent, first, last),
            cached_tokens=cached_tokens,
            cumulative_logprob=samples[0].cumulative_logprob,
            samples=tuple(samples) if len(samples) > 1 else (),
            logprobs=logprobs,
        )

    async def _write(
        self, tokens: Sequence[str], logprobs: tuple[TokenLogprob, ...], at_once: bool
    ) -> AsyncIterator[Delta]:
        """A Delta for each token, or one for all of them after the time that they take."""
        self._running += 1
        try:
            for place, token in enumerate(tokens):
                if self._seconds_per_token:
                    await asyncio.sleep(self._seconds_per_token)
                self._output_tokens += 1
                if not at_once:
                    yield Delta(token, 1, time.monotonic(), logprobs[place : place + 1])
            if at_once and tokens:
                yield Delta("".join(tokens), len(tokens), time.monotonic(), logprobs)
        finally:
            self._running -= 1

    async def complete(self, request: Request) -> Completion:
        stream = self._answer(request)
        try:
            async for item in stream:
                if isinstance(item, Completion):
                    return item
        finally:
            await stream.aclose()
        raise AssertionError("the stream ends with a Completion")

    async def score(self, request: Request, choices: Sequence[str]) -> list[float]:
        text, prompt_tokens = self._read(request)
        if not choices or not all(choices):
            raise RequestRejected("A choice is empty, or there is none.", hint="Give choices with text.")
        self._prompt_tokens += prompt_tokens
        return scripted_answers.scores(text, choices)

    async def next_logprobs(self, request: Request) -> np.ndarray:
        text, prompt_tokens = self._read(request)
        self._prompt_tokens += prompt_tokens
        return scripted_tokens.next_logprobs(text)

    def _read(self, request: Request) -> tuple[str, int]:
        """The prompt's text and its number of tokens. Raises RequestRejected when there are too many.

        An adapter's name stands before the text: the answers of adapters differ.
        """
        if isinstance(request.prompt, str | ChatPrompt):
            text = request.prompt if isinstance(request.prompt, str) else chat_text(request.prompt, self)[0]
            tokens = len(TOKEN.findall(text))
        else:
            text, tokens = self.decode(request.prompt), len(request.prompt)
        if not tokens:
            raise RequestRejected("The prompt is empty.", hint="Write something.")
        limit = self.info.max_model_len
        if tokens >= limit:
            raise RequestRejected(
                f"The prompt has {tokens} tokens; the context holds {limit}, the answer included.",
                hint="Shorten the prompt.",
            )
        return (f"[{request.adapter.name}] {text}" if request.adapter else text), tokens

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        return [[scripted_tokens.to_id(token) for token in TOKEN.findall(text)] for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(scripted_tokens.to_text, token_ids))

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        return list(map(scripted_tokens.piece, token_ids))

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        if "messages" in (options or {}):
            raise TemplateError("The template's messages are the conversation's own.", hint="Leave them out.")
        return [_template().render(options or {}, messages=chat) for chat in chats]

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._running,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            prefix_queries=self._cache.queries,
            prefix_hits=self._cache.hits,
        )

    async def reset_prefix_cache(self) -> bool:
        self._cache.clear()
        return True

    async def check(self) -> None:
        return None

    async def close(self) -> None:
        return None


class _PrefixCache:
    """Counts, in tokens, what a cache of the least recently used whole blocks would have served."""

    def __init__(self) -> None:
        self.queries = 0
        self.hits = 0
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def clear(self) -> None:
        self._blocks.clear()

    def add(self, prompt: str | Sequence[int], adapter: int) -> int:
        """Look `prompt` up, keep it, and return how many of its tokens were there. The last is never.

        Prompts of different adapters have nothing in common.
        """
        tokens = TOKEN.findall(prompt) if isinstance(prompt, str) else prompt
        prefix, cached, missed = adapter, 0, False
        for start in range(0, len(tokens) - _BLOCK_TOKENS, _BLOCK_TOKENS):
            prefix = hash((prefix, *tokens[start : start + _BLOCK_TOKENS]))
            missed = missed or prefix not in self._blocks
            cached += 0 if missed else _BLOCK_TOKENS
            self._blocks[prefix] = None
            self._blocks.move_to_end(prefix)
        while len(self._blocks) > _CACHE_BLOCKS:
            self._blocks.popitem(last=False)
        self.queries += len(tokens)
        self.hits += cached
        return cached


@functools.cache
def _template() -> jinja2.Template:
    from jinja2 import Template

    return Template(_CHAT_TEMPLATE, keep_trailing_newline=True)
