"""transformers in the worker's process: one batch that sequences join and leave between two steps.

The loop is `generate`'s own, one forward pass a step with a DynamicCache, written out: `generate` itself
takes no sequence up before all of its batch have ended, so a chat would wait for a table's rows. Sequences
of different lengths lie in one batch with padding on their left. Models whose layers keep more than keys
and values (Mamba and its like) can't join a batch under way; theirs are done one batch after another.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import machine
from core.engines import hf_sampling, vllm_scoring
from core.engines.base import Report
from core.engines.hf_rows import Rows
from core.engines.hf_sampling import Chooser
from core.engines.tokenizer import Tokenizer
from core.engines.worker_text import Key, Token, Work
from core.errors import ModelError, RequestRejected

if TYPE_CHECKING:
    import numpy as np
    import torch

_PROMPT_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Most tokens of prompts that one step reads, padding included; one prompt alone may be longer."""
_CHOICES_AT_ONCE = 8
_ONE_AFTER_ANOTHER = "This model's requests are answered batch after batch: none can join one under way."
_REDUCED = "The context was reduced from {:,} to {:,} tokens: there is no memory for more."
_CONTEXT_TOKENS = 2048
_LEAST_CONTEXT = 512
_CACHE_SHARE = 0.5
"""Of the memory that is free after the load, for keys and values: a step copies a layer's."""


def make(
    *,
    report: Report,
    name: str,
    folder: str,
    dtype: str,
    slots: int,
    context_tokens: int | None,
    made_for: int | None,
    end_ids: Sequence[int],
    trust_remote_code: bool,
    allow_pickle: bool,
) -> TransformersBackend:
    """Load the model in `folder`.

    `context_tokens`: what is asked for, `made_for`: what its makers say, None where either is unknown;
    `end_ids`: tokens that they say end an answer.
    """
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    report("Loading weights")
    device = _device()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_dtype(dtype, device, folder, trust_remote_code),
        device_map="auto" if torch.cuda.device_count() > 1 else {"": device},
        trust_remote_code=trust_remote_code,
        use_safetensors=None if allow_pickle else True,
        local_files_only=True,
    ).eval()
    tokenizer = Tokenizer(name, Path(folder), trust_remote_code=trust_remote_code)
    config = model.config.get_text_config()
    made_for = made_for or getattr(config, "max_position_embeddings", None) or _CONTEXT_TOKENS
    if context_tokens is not None and context_tokens > made_for:
        raise ModelError(
            f"{name} was made for {made_for:,} tokens, not for {context_tokens:,}.",
            hint="Load it with a smaller max_model_len.",
        )
    report("Warming up")
    return TransformersBackend(
        model,
        tokenizer,
        slots=slots,
        context_tokens=context_tokens or made_for,
        may_reduce=context_tokens is None,
        end_ids=frozenset(end_ids),
    )


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(asked: str, device: str, folder: str, trust_remote_code: bool) -> Any:
    """The one asked for; else the model's own, but float32 on a CPU that is slow at anything else."""
    import torch
    from transformers import AutoConfig

    if asked != "auto":
        return {"half": torch.float16, "float": torch.float32}.get(asked) or getattr(torch, asked)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    own = getattr(config.get_text_config(), "dtype", None) or torch.float32
    if device != "cpu" or own == torch.float32:
        return own
    fast = {"amx_bf16", "avx512_bf16"} & set(machine.describe().cpu_features)
    return torch.bfloat16 if fast else torch.float32


class TransformersBackend:
    """See `core.engines.worker.Backend`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        slots: int,
        context_tokens: int,
        may_reduce: bool = True,
        end_ids: frozenset[int],
    ) -> None:
        import inspect

        import torch
        import transformers

        self.slots = slots
        self.end_ids = end_ids
        self._model = model
        self._tokenizer = tokenizer
        self._device = model.device
        self._vocabulary = model.get_output_embeddings().weight.shape[0]
        notes = []
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        # Mamba's: its padding is of interest only while the prompt is read
        self._cache_name = "past_key_values" if "past_key_values" in takes else "cache_params"
        self._takes_keep = "logits_to_keep" in takes
        self._can_join = _has_plain_layers(model)
        self._choosers: dict[Key, Chooser] = {}
        self._new: list[Key] = []
        self._rows: Rows | None = None
        token_bytes = self._measure()
        if not self._can_join:
            notes.append(_ONE_AFTER_ANOTHER)
        self._cache_tokens = slots * context_tokens  # of states, nothing grows
        if token_bytes:
            self._cache_tokens = int(_free_bytes(self._device) * _CACHE_SHARE) // token_bytes
            least = min(context_tokens, _LEAST_CONTEXT) if may_reduce else context_tokens
            if self._cache_tokens < least:
                raise ModelError(
                    f"Beside the model there is room for {self._cache_tokens:,} tokens, not for {least:,}.",
                    hint="Close other programs, choose a smaller model, or lower max_model_len.",
                )
            if self._cache_tokens < context_tokens:
                notes.append(_REDUCED.format(context_tokens, self._cache_tokens))
        self.context_tokens = min(context_tokens, self._cache_tokens)
        self.facts: Mapping[str, Any] = {
            "device": _device_name(self._device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "context_tokens": self.context_tokens,
            "weights_bytes": sum(each.numel() * each.element_size() for each in model.parameters()),
            "cache_tokens": self._cache_tokens,
            "cache_bytes": self._cache_tokens * token_bytes,
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "notes": tuple(notes),
        }

    def add(self, key: Key, work: Work) -> None:
        reason = hf_sampling.refused(work.params, self._vocabulary)
        if reason:
            raise RequestRejected(reason, hint="Change the parameters.")
        encode = lambda text: self._tokenizer.encode([text])[0]  # noqa: E731
        self._choosers[key] = Chooser(work, self._device, self.end_ids, encode)
        self._new.append(key)

    def drop(self, key: Key) -> None:
        del self._choosers[key]
        if key in self._new:
            self._new.remove(key)
        if not self._choosers:
            self._rows = None

    def step(self) -> Sequence[tuple[Key, Token]]:
        import torch

        with torch.inference_mode():
            self._forget_dropped()
            return [*self._go_on(), *self._begin()]

    def _forget_dropped(self) -> None:
        rows = self._rows
        if rows is None:
            return
        live = [row for row, key in enumerate(rows.keys) if key in self._choosers]
        if not live:
            self._rows = None
        elif len(live) < len(rows.keys) and self._can_join:  # else they stay until all have ended
            rows.keep(live)

    def _go_on(self) -> Iterator[tuple[Key, Token]]:
        """One token more for each sequence under way."""
        import torch

        rows = self._rows
        if rows is None:
            return
        last = [self._choosers[key].written[-1] if key in self._choosers else 0 for key in rows.keys]
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(last), 1)], 1)
        logits = self._forward(torch.tensor(last, device=self._device)[:, None], rows.mask, rows.cache)
        yield from self._choose(rows.keys, logits)

    def _begin(self) -> Iterator[tuple[Key, Token]]:
        """Read the prompts of new sequences, as many as one step may, and write their first tokens."""
        import torch

        keys = self._next_new()
        if not keys:
            return
        prompts = [self._choosers[key].work.prompt_ids for key in keys]
        longest = max(map(len, prompts))
        ids = torch.zeros(len(keys), longest, dtype=torch.long)
        mask = torch.zeros(len(keys), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        fresh = Rows(list(keys), mask.to(self._device), self._cache())
        logits = self._forward(ids.to(self._device), fresh.mask, fresh.cache)
        if self._rows is None:
            self._rows = fresh
        else:
            self._rows.join(fresh)
        yield from self._choose(keys, logits)

    def _next_new(self) -> list[Key]:
        if self._rows is not None and not self._can_join:
            return []
        held = list(self._rows.keys) if self._rows is not None else []
        most, budget = self._most_tokens(held), _PROMPT_TOKENS.get(self._device.type, 2048)
        taken: list[Key] = []
        longest = 0
        for key in self._new:
            longest = max(longest, len(self._choosers[key].work.prompt_ids))
            most = max(most, self._most_tokens([key]))
            together = len(held) + len(taken) + 1
            if taken and longest * (len(taken) + 1) > budget:
                break
            if together > 1 and most * together > self._cache_tokens:
                break
            taken.append(key)
        self._new = self._new[len(taken) :]
        return taken

    def _most_tokens(self, keys: Sequence[Key]) -> int:
        """How long the longest of the sequences may get."""
        works = [self._choosers[key].work for key in keys if key in self._choosers]
        return max(
            (min(len(work.prompt_ids) + work.max_tokens, self.context_tokens) for work in works), default=0
        )

    def _choose(self, keys: Sequence[Key], logits: torch.Tensor) -> Iterator[tuple[Key, Token]]:
        live = [row for row, key in enumerate(keys) if key in self._choosers]
        choosers = [self._choosers[keys[row]] for row in live]
        logits = logits.float() if len(live) == len(keys) else logits[live].float()
        tokens = hf_sampling.choose(logits, choosers)
        return zip((keys[row] for row in live), tokens, strict=True)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, cache: Any, keep: int = 1
    ) -> torch.Tensor:
        """Logits of the last place, (sequences, vocabulary), or of the last `keep`."""
        arguments: dict[str, Any] = {"input_ids": ids, self._cache_name: cache, "use_cache": True}
        if mask is not None and (self._cache_name != "cache_params" or mask.shape == ids.shape):
            arguments["attention_mask"] = mask
            if self._takes_positions:
                positions = (mask.cumsum(-1) - 1).clamp_min(0)
                arguments["position_ids"] = positions[:, -ids.shape[1] :]
        if self._takes_keep:
            arguments["logits_to_keep"] = keep
        logits = self._model(**arguments).logits.to(self._device)[..., : self._vocabulary]
        return logits[:, -1] if keep == 1 else logits[:, -keep:]

    def _cache(self) -> Any:
        """Where layers can be joined, all keep their whole sequence, also those with a sliding window."""
        from transformers import DynamicCache

        return DynamicCache() if self._can_join else DynamicCache(config=self._model.config)

    def _measure(self) -> int:
        """Bytes of keys and values a token, from a first pass; 0 where layers only keep a state.

        It shows, too, whether sequences can be joined: all layers must have kept what they were given.
        """
        import torch

        cache, tokens = self._cache(), 8
        with torch.inference_mode():
            self._forward(torch.zeros(1, tokens, dtype=torch.long, device=self._device), None, cache)
        kept = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
        if any(each is None or each.ndim != 4 or each.shape[-2] != tokens for each in kept):
            self._can_join = False
        return sum(each.numel() * each.element_size() for each in kept if each is not None) // tokens

    def score(self, prompt_ids: Sequence[int], answers: Sequence[tuple[int, ...]]) -> list[float]:
        """See `core.engines.base.Engine.score`. The prompt is read once, its answers some at a time."""
        import torch

        ends = sorted(self.end_ids)
        asked = vllm_scoring.questions(answers, ends)
        # a state can't go on with several tokens at once: there, each answer is read with its prompt
        read = list(prompt_ids[:-1]) if self._can_join else []
        rest = list(prompt_ids[len(read) :])
        found: dict[tuple[int, ...], dict[int, float]] = {}
        with torch.inference_mode():
            start = self._cache()
            if read:
                self._forward(torch.tensor([read], device=self._device), None, start)
            for begin in range(0, len(answers), _CHOICES_AT_ONCE):
                some = answers[begin : begin + _CHOICES_AT_ONCE]
                logprobs = self._after(start, rest, some, repeat=bool(read)).log_softmax(-1)
                for row, answer in enumerate(some):
                    for place in range(len(answer) + 1):
                        node = answer[:place]
                        found[node] = {
                            token: logprobs[row, place, token].item() for token in asked.get(node, ())
                        }
        return vllm_scoring.sums(answers, ends, {node: found[node] for node in asked})

    def _after(
        self, start: Any, rest: list[int], answers: Sequence[tuple[int, ...]], *, repeat: bool
    ) -> torch.Tensor:
        """Logits after the prompt and after each token of each answer: (answers, longest + 1, vocabulary)."""
        import torch

        cache = copy.deepcopy(start)
        if repeat:
            cache.batch_repeat_interleave(len(answers))
        longest = max(map(len, answers))
        # padding on the right: no token sees what comes after it
        ids = [[*rest, *answer, *[0] * (longest - len(answer))] for answer in answers]
        return self._forward(torch.tensor(ids, device=self._device), None, cache, keep=longest + 1).float()

    def next_logprobs(self, prompt_ids: Sequence[int]) -> np.ndarray:
        """Natural logarithms, float32, (vocabulary,)."""
        import torch

        with torch.inference_mode():
            logits = self._forward(torch.tensor([prompt_ids], device=self._device), None, self._cache())
            return logits[0].float().log_softmax(-1).cpu().numpy()

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        return self._tokenizer.decode(token_ids, special=special)

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return self._tokenizer.texts(token_ids)


def _has_plain_layers(model: Any) -> bool:
    """Whether all that the model's layers keep is keys and values, one a token."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    try:
        layers = DynamicCache(config=model.config).layers
    except (ValueError, KeyError, AttributeError, TypeError):  # a cache that only the model itself makes
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _free_bytes(device: torch.device) -> int:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return machine.describe().available_bytes


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name(device)
        return name if count == 1 else f"{count} x {name}"
    return "cpu" if device.type == "cpu" else "Apple GPU"
