"""llama.cpp in a process of its own: all sequences in one context, one step of all of them at a time.

A step reads the last token of each sequence that writes, and with the room that is left in the batch
some more of the prompts that are still to be read. What a prompt has in common with any other sequence,
at work or ended, is not read again.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import machine
from core.engines import vllm_scoring
from core.engines.base import Report
from core.engines.llamacpp_memory import Place, Places, common_prefix
from core.engines.llamacpp_model import Model, library, log_to_stderr
from core.engines.llamacpp_sampling import Candidates, Sampler
from core.engines.worker_text import Candidate, Key, Token, Work
from core.errors import EngineLoadError, RequestRejected
from core.types import Priority

if TYPE_CHECKING:
    import numpy as np

BATCH_SLOTS = {"CPU": 8, "GPU": 16}
"""Sequences that a batch may fill when nobody says how many: more hardly gain anything on few cores."""
CHAT_SLOTS = 2
"""Sequences beyond a batch's, so that a chat never waits for a row to end."""
_STEP_TOKENS = {"CPU": 256, "GPU": 2048}  # of prompts: what somebody's next token waits for
_USUAL_CONTEXT = 16_384
_USUAL_CELLS = 32_768
_LEAST_CELLS = 2048
_SPARE_BYTES = 1 << 30  # of memory, for buffers and everything else


@dataclass(slots=True)
class _Sequence:
    key: Key
    work: Work
    sampler: Sampler
    place: Place | None = None
    unread: list[int] = field(default_factory=list)
    """Tokens whose keys and values are still to be computed; the last one's logits draw the next token."""


def make(
    *,
    report: Report,
    path: str,
    max_model_len: int | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    kv_cache_memory_bytes: int | None,
    cpu_threads: int | None = None,
) -> LlamaCppBackend:
    """Load the GGUF file at `path`. None means: chosen for this machine. Raises EngineLoadError."""
    log_to_stderr()
    report("Loading the model")
    model = Model(Path(path))
    if model.why_not:
        raise EngineLoadError(f"{Path(path).name} can't chat: {model.why_not}.", hint="Choose another model.")
    if max_model_len is not None and max_model_len > model.trained_context:
        raise EngineLoadError(
            f"max_model_len={max_model_len} is more than the {model.trained_context} tokens that "
            f"{Path(path).name} was made for.",
            hint="Lower it, or leave it empty.",
        )
    device = "GPU" if library().llama_supports_gpu_offload() else "CPU"
    batch_slots = max_num_seqs or BATCH_SLOTS[device]
    slots = batch_slots + CHAT_SLOTS
    here = machine.describe()
    if device == "GPU":  # the weights are there already
        free = sum(gpu.free_bytes for gpu in here.gpus)
    else:  # they are mapped, and come into memory as they are used
        free = here.available_bytes - model.size_bytes
    context, cells = _sizes(model, slots, free, max_model_len, kv_cache_memory_bytes)
    report("Making room for the KV cache")
    return LlamaCppBackend(
        model,
        device=device,
        slots=slots,
        batch_slots=batch_slots,
        context_tokens=context,
        cells=cells,
        step_tokens=max(max_num_batched_tokens or _STEP_TOKENS[device], slots),
        # two threads on one core only get in each other's way
        threads=cpu_threads or here.physical_cores,
    )


def _sizes(
    model: Model, slots: int, free_bytes: int, wanted: int | None, cache_bytes: int | None
) -> tuple[int, int]:
    """The context, and how many tokens the memory that all sequences share holds. Raises EngineLoadError."""
    per_token = model.kv_bytes_per_token
    if cache_bytes is not None:
        room = cache_bytes // per_token
        least = wanted or min(256, model.trained_context)
        if room < least:
            raise EngineLoadError(
                f"kv_cache_memory_bytes={cache_bytes} holds {room} tokens; the context needs {least}.",
                hint=f"Give {per_token * least} bytes at least, or leave it empty.",
            )
        return wanted or min(model.trained_context, _USUAL_CONTEXT, room), room
    room = max(_LEAST_CELLS, (free_bytes - _SPARE_BYTES) // 2 // per_token)
    context = wanted or min(model.trained_context, _USUAL_CONTEXT, room)
    return context, max(context, min(slots * context, _USUAL_CELLS, room))


class LlamaCppBackend:
    """See `core.engines.worker.Backend`."""

    def __init__(
        self,
        model: Model,
        *,
        device: str,
        slots: int,
        batch_slots: int,
        context_tokens: int,
        cells: int,
        step_tokens: int,
        threads: int,
    ) -> None:
        self.slots = slots
        self.context_tokens = context_tokens
        self.end_ids = model.end_ids
        self._model = model
        self._native = library()
        self._context = self._make_context(slots, cells, step_tokens, threads)
        self._memory = self._native.llama_get_memory(self._context)
        self._batch = self._native.llama_batch_init(step_tokens, 0, 1)
        self._step_tokens = step_tokens
        self._places = Places(slots, cells, can_rewind=model.can_rewind)
        self._probe = slots  # a sequence that is never kept
        self._candidates = Candidates(model.vocabulary_size)
        self._sequences: dict[Key, _Sequence] = {}
        self.facts: Mapping[str, Any] = {
            "device": device,
            "dtype": model.dtype,
            "slots": slots,
            "batch_slots": batch_slots,
            "context_tokens": context_tokens,
            "cells": cells,
            "cache_bytes": cells * model.kv_bytes_per_token,
            "weights_bytes": model.size_bytes,
            "step_tokens": step_tokens,
            "threads": threads,
            "metadata": dict(model.metadata),
        }

    def _make_context(self, slots: int, cells: int, step_tokens: int, threads: int) -> Any:
        params = self._native.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = step_tokens
        params.n_ubatch = min(step_tokens, 512)
        params.n_seq_max = slots + 1
        params.kv_unified = True  # any sequence may take any of the cells, and prefixes are shared
        params.n_threads = params.n_threads_batch = threads
        context = self._native.llama_init_from_model(self._model.pointer, params)
        if not context:
            raise EngineLoadError(
                f"llama.cpp found no room for {cells:,} tokens of context beside the model.",
                hint="Lower max_model_len, max_num_seqs or kv_cache_memory_bytes.",
            )
        free = weakref.finalize(self, self._native.llama_free, context)
        free.atexit = False  # the process ends anyway, and the library may have gone before
        return context

    # Sequences

    def add(self, key: Key, work: Work) -> None:
        sampler = Sampler(self._model, self._candidates, work.prompt_ids, work.params, self.context_tokens)
        self._sequences[key] = _Sequence(key, work, sampler)

    def drop(self, key: Key) -> None:
        sequence = self._sequences.pop(key)
        sequence.sampler.close()
        if sequence.place is not None:
            self._places.leave(sequence.place)

    def step(self) -> Sequence[tuple[Key, Token | RequestRejected]]:
        self._begin_waiting()
        read = self._chosen_for_a_step()
        rows = []
        for sequence, tokens in read:
            place = sequence.place
            rows.append((place.number, len(place.tokens), tokens, len(tokens) == len(sequence.unread)))
        logits = self._decode(rows)
        drawn: list[tuple[Key, Token | RequestRejected]] = []
        for (sequence, tokens), own in zip(read, logits, strict=True):
            sequence.place.tokens += tokens
            del sequence.unread[: len(tokens)]
            if own is not None:
                drawn.append((sequence.key, self._draw(sequence, own)))
        return drawn

    def _draw(self, sequence: _Sequence, logits: np.ndarray) -> Token | RequestRejected:
        try:
            token = sequence.sampler.draw(logits)
        except RequestRejected as error:
            return error
        sequence.unread.append(token)
        if not sequence.work.wants_logprobs:
            return Token(token)
        return _with_logprobs(token, log_softmax(logits), sequence.work.top_logprobs or 0)

    def _begin_waiting(self) -> None:
        """Give a place to each sequence for which there is room, the most urgent first."""
        waiting = [each for each in self._sequences.values() if each.place is None]
        waiting.sort(key=lambda each: each.work.priority)
        reading = {each.key[0] for each in self._sequences.values() if each.place and len(each.unread) > 1}
        for sequence in waiting:
            if sequence.key[0] in reading:
                continue  # another answer to the same prompt: it is read once
            work = sequence.work
            reserved = min(len(work.prompt_ids) + work.max_tokens, self.context_tokens)
            # a batch leaves room for one chat
            spare = self.context_tokens if work.priority >= Priority.BATCH else 0
            taken = self._places.take(work.prompt_ids, reserved, spare=spare)
            if taken is None:
                return
            for place in taken.cleared:
                self._cut(place.number, 0)
            place, shared = taken.place, taken.shared
            if taken.source is not None:
                self._native.llama_memory_seq_cp(self._memory, taken.source.number, place.number, 0, shared)
            elif not self._cut(place.number, shared):
                place.tokens = []
            sequence.place, sequence.unread = place, list(work.prompt_ids[len(place.tokens) :])
            reading.add(sequence.key[0])

    def _cut(self, number: int, kept: int) -> bool:
        """Keep the first tokens of a sequence alone; False when all had to go."""
        if self._native.llama_memory_seq_rm(self._memory, number, kept, -1):
            return True
        self._native.llama_memory_seq_rm(self._memory, number, -1, -1)
        return False

    def _chosen_for_a_step(self) -> list[tuple[_Sequence, list[int]]]:
        """Whose tokens are read: first of those that write, then of prompts, the most urgent first."""
        live = [each for each in self._sequences.values() if each.place is not None]
        live.sort(key=lambda each: (len(each.unread) > 1, each.work.priority))
        room, chosen = self._step_tokens, []
        for sequence in live:
            tokens = sequence.unread[:room]
            if tokens:
                chosen.append((sequence, tokens))
                room -= len(tokens)
        return chosen

    def _decode(self, rows: Sequence[tuple[int, int, Sequence[int], bool]]) -> list[np.ndarray | None]:
        """Read (sequence, first position, tokens, are logits wanted) of each row.

        Returns the logits after each row's last token (vocabulary,), valid until the next call.
        """
        import numpy as np

        batch, place, last = self._batch, 0, []
        for number, position, tokens, wanted in rows:
            for offset, token in enumerate(tokens):
                batch.token[place] = token
                batch.pos[place] = position + offset
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = number
                batch.logits[place] = False
                place += 1
            batch.logits[place - 1] = wanted
            last.append(place - 1 if wanted else None)
        batch.n_tokens = place
        code = self._native.llama_decode(self._context, batch)
        if code == 1:  # no room: cells of many sequences may lie badly
            for each in self._places.forget_all_idle():
                self._cut(each.number, 0)
            code = self._native.llama_decode(self._context, batch)
        if code != 0:
            self._native.llama_memory_clear(self._memory, True)  # nobody knows what is in it now
            self._places.forget_all()
            raise RuntimeError(f"llama_decode returned {code}")
        size = (self._model.vocabulary_size,)
        return [
            None
            if row is None
            else np.ctypeslib.as_array(self._native.llama_get_logits_ith(self._context, row), size)
            for row in last
        ]

    # Questions, answered between two steps

    def next_logprobs(self, prompt_ids: Sequence[int]) -> np.ndarray:
        """Natural log-probabilities of each token after the prompt, float32 (vocabulary,)."""
        (found,) = self._after(prompt_ids, [()])
        return found

    def score(self, prompt_ids: Sequence[int], answers: Sequence[vllm_scoring.Tokens]) -> list[float]:
        ends = sorted(self.end_ids)
        questions = sorted(vllm_scoring.questions(answers, ends).items())  # neighbours share a beginning
        distributions = self._after(prompt_ids, [node for node, _ in questions])
        found = {
            node: {token: float(logprobs[token]) for token in tokens}
            for (node, tokens), logprobs in zip(questions, distributions, strict=True)
        }
        return vllm_scoring.sums(answers, ends, found)

    def _after(
        self, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> Sequence[np.ndarray]:
        """The distribution of the next token after the prompt with each of `continuations`."""
        needed = len(prompt_ids) + max(map(len, continuations))
        if needed > self._places.unused:
            for place in self._places.forget_all_idle():
                self._cut(place.number, 0)
        shared, source = self._places.longest_prefix(prompt_ids)
        if needed - shared > self._places.unused:
            raise RequestRejected(
                "The KV cache is full of answers under way.", hint="Try again when some have ended."
            )
        if source is not None:
            self._native.llama_memory_seq_cp(self._memory, source.number, self._probe, 0, shared)
        held = list(prompt_ids[:shared])
        found = []
        try:
            for continuation in continuations:
                wanted = [*prompt_ids, *continuation]
                kept = common_prefix(held, wanted, min(len(held), len(wanted) - 1))
                if kept < len(held) and not (self._model.can_rewind and self._cut(self._probe, kept)):
                    self._cut(self._probe, 0)
                    kept = 0
                found.append(log_softmax(self._read_probe(wanted, kept)))
                held = wanted
        finally:
            self._cut(self._probe, 0)
        return found

    def _read_probe(self, tokens: Sequence[int], kept: int) -> np.ndarray:
        for begin in range(kept, len(tokens), self._step_tokens):
            part = tokens[begin : begin + self._step_tokens]
            (logits,) = self._decode([(self._probe, begin, part, begin + len(part) == len(tokens))])
        return logits

    # Text

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        return self._model.decode(token_ids, special=special)

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return self._model.texts(token_ids)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities, float32, the same shape as `logits`."""
    import numpy as np

    shifted = logits - logits.max()
    return (shifted - np.log(np.exp(shifted).sum(dtype=np.float64))).astype(np.float32)


def _with_logprobs(token: int, logprobs: np.ndarray, wanted: int) -> Token:
    import numpy as np

    likeliest = np.argpartition(-logprobs, min(wanted, len(logprobs) - 1))[:wanted]
    likeliest = likeliest[np.argsort(-logprobs[likeliest], kind="stable")]
    rank = int((logprobs > logprobs[token]).sum()) + 1
    return Token(
        token,
        Candidate(token, float(logprobs[token]), rank),
        tuple(Candidate(int(each), float(logprobs[each]), at) for at, each in enumerate(likeliest, 1)),
    )
