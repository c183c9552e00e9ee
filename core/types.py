"""The nouns that cross a module's border. Times are seconds on `time.monotonic()`."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as OpenAI's chat API has it."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation that the engine itself puts into the model's form: for engines without "tokens"."""

    messages: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


Prompt = str | Sequence[int] | ChatPrompt
"""Text for the engine to tokenize, token ids that are sent as they are, or a conversation."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A registered LoRA adapter. `folder` holds adapter_config.json; `number` (from 1) is vLLM's own id."""

    name: str
    folder: str
    number: int


class Priority(enum.IntEnum):
    """Order in which waiting requests enter the engine's batch; vLLM takes the lowest first."""

    CHAT = -10
    COMPARE = -5
    API = 0
    BATCH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation. `params` holds names of `core.sampling`, validated there.

    With `top_logprobs`, the answer comes with its tokens, each with that many alternatives.
    `adapter`: the LoRA adapter that answers, None for the model itself.
    """

    id: str
    prompt: Prompt
    params: Mapping[str, Any] = field(default_factory=dict)
    priority: Priority = Priority.CHAT
    top_logprobs: int | None = None
    adapter: LoraAdapter | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """When a request was sent, and when its first and last token came.

    Definitions as in `vllm bench serve`: TTFT is sent -> first token, E2EL is
    sent -> last token, TPOT is (E2EL - TTFT) / (output tokens - 1).
    """

    sent_s: float
    first_token_s: float | None
    last_token_s: float | None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.sent_s

    @property
    def e2el_s(self) -> float | None:
        return None if self.last_token_s is None else self.last_token_s - self.sent_s

    def tpot_s(self, output_tokens: int) -> float | None:
        if self.first_token_s is None or self.last_token_s is None or output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (output_tokens - 1)

    def output_tokens_per_s(self, output_tokens: int) -> float | None:
        """The speed a reader sees: 1 / TPOT, the wait for the first token left out."""
        tpot = self.tpot_s(output_tokens)
        return None if not tpot else 1 / tpot


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A token of the vocabulary. `text`: what it adds to a text; `special`: a control token."""

    token_id: int
    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was written, with the likeliest ones in its place as `alternatives`, by rank.

    The token itself is among them where it is that likely (as in OpenAI's `top_logprobs`).
    `logprob` is the natural logarithm of the probability that the model itself gave it, before any
    sampling parameter; `rank` is its place in that distribution, from 1.
    """

    token_id: int
    text: str
    logprob: float
    rank: int
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step added to an answer. `text` may be empty while a character is incomplete.

    `logprobs` has one entry a token where the request asked for `top_logprobs`.
    """

    text: str
    tokens: int
    at_s: float
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One of the n answers to one request. `cumulative_logprob` is None unless `logprobs` was asked for."""

    text: str
    finish_reason: FinishReason
    output_tokens: int
    cumulative_logprob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer. `cached_tokens`: prompt tokens served from the prefix cache, None if unknown.

    With n > 1, `samples` holds all n answers; `text`, `finish_reason` and `cumulative_logprob` are
    the first one's, and `output_tokens` counts them all. `logprobs` is the whole answer's, where
    `top_logprobs` was asked for.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    timing: Timing
    cached_tokens: int | None = None
    cumulative_logprob: float | None = None
    samples: tuple[Sample, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


Feature = Literal[
    "tokens",  # encode, decode and pieces: the tokens that the model itself reads
    "chat_options",  # further variables of the chat template
    "completion",  # plain text, without a chat template
    "structured_outputs",
    "score",
    "beam_search",
    "top_logprobs",
    "distribution",
    "adapters",
]
EngineName = Literal["vllm", "transformers", "llamacpp", "openai", "scripted"]
Hub = Literal["huggingface", "modelscope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What to load. None means: chosen for this machine at load time.

    Names are vLLM's engine arguments. `kv_cache_memory_bytes` is in bytes,
    `max_model_len` in tokens, `gpu_memory_utilization` a share from 0 to 1.
    `max_num_seqs` is what a batch may fill; the engine gets a few slots more, for chats.
    `cpu_threads`, which is ours, is how many threads compute where there is no GPU.
    `model` is "embedded", a folder, a GGUF file, or a hub's id (`hub` None: whichever has it here);
    with the engine "openai" the name that the server at `base_url` gives it. A key is never part of it.
    """

    engine: EngineName = "vllm"
    model: str = "embedded"
    hub: Hub | None = None
    revision: str | None = None
    base_url: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    block_size: int | None = None
    cpu_threads: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    distributed_executor_backend: str | None = None
    enable_lora: bool | None = None
    max_loras: int | None = None
    max_lora_rank: int | None = None
    max_cpu_loras: int | None = None
    speculative_config: Mapping[str, Any] | None = None
    reasoning_parser: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What was loaded, with the values really in force.

    `model` is the name to show, `batch_slots` the requests of a batch that are answered at once,
    `batch_ahead` those that may wait inside the engine for the places of others,
    `kv_cache_tokens` the tokens that fit the KV cache (None if unknown). `cannot` says
    of each feature that this engine lacks why, `cannot_params` of each sampling parameter.
    `weights_bytes`: memory of the weights as the engine reports it, None where it doesn't.
    `vocabulary_size`: token ids are below it; None where nobody says.
    """

    model: str
    revision: str | None
    device: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    batch_slots: int
    kv_cache_tokens: int | None
    kv_cache_bytes: int | None
    has_chat_template: bool
    generation_config: Mapping[str, Any]
    engine_version: str
    settings: Mapping[str, Any]
    load_s: float
    cannot: Mapping[Feature, str] = field(default_factory=dict)
    cannot_params: Mapping[str, str] = field(default_factory=dict)
    weights_bytes: int | None = None
    vocabulary_size: int | None = None
    batch_ahead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """Memory in use before and after a load or an unload: of all GPUs where there are some, else RAM."""

    at: dt.datetime
    event: Literal["load", "unload"]
    model: str
    device: Literal["GPU", "RAM"]
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A reading of the engine's counters. `kv_cache_usage` is a share from 0 to 1; totals count from load."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


EnginePhase = Literal["empty", "loading", "ready", "restarting", "unloading", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """One look at the runtime: enough to draw the engine bar without touching the engine.

    `stage` is a short phrase ("Loading weights"), `since_s` seconds in this
    phase, `log` the engine's own last lines. `error` is set when the phase is
    "failed". `rates` holds (seconds ago, output tokens/s), oldest first.
    """

    phase: EnginePhase
    stage: str = ""
    since_s: float = 0.0
    spec: EngineSpec | None = None
    info: EngineInfo | None = None
    stats: EngineStats = EngineStats()
    output_tokens_per_s: float = 0.0
    rates: tuple[tuple[float, float], ...] = ()
    error: Exception | None = None
    log: tuple[str, ...] = ()
