"""How the next tokens are chosen from a model's logits: vLLM's meaning and order of the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.engines.worker_text import Candidate, Token, Work

if TYPE_CHECKING:
    import torch

_NEVER = -math.inf
_LIKELIEST = 512


class Chooser:
    """Of one sequence: what it has written, its parameters and its own source of chance."""

    def __init__(
        self,
        work: Work,
        device: torch.device,
        end_ids: frozenset[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        import torch

        params = work.params
        self.work = work
        self.written: list[int] = []
        self.temperature = float(params.get("temperature", 1.0))
        self.top_k = max(int(params.get("top_k", 0)), 0)
        self.top_p = float(params.get("top_p", 1.0))
        self.min_p = float(params.get("min_p", 0.0))
        self.generator: torch.Generator | None = None
        if params.get("seed") is not None:
            self.generator = torch.Generator(device).manual_seed(params["seed"] % 2**63)
        self._ends = sorted(end_ids | set(params.get("stop_token_ids") or ()))
        self._least = params.get("min_tokens", 0)
        self._repetition = params.get("repetition_penalty", 1.0)
        self._presence = params.get("presence_penalty", 0.0)
        self._frequency = params.get("frequency_penalty", 0.0)
        self._bias = {int(token): bias for token, bias in (params.get("logit_bias") or {}).items()}
        self._allowed = params.get("allowed_token_ids")
        self._bad = _token_sequences(params.get("bad_words") or (), encode)
        self._counts: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def narrows(self) -> bool:
        return bool(self.min_p or self.top_k or self.top_p < 1)

    def narrows_to(self, tokens: int, gap: float, mass: float) -> bool:
        """Whether min_p, top_k and top_p choose among the `tokens` likeliest alone.

        `gap`: how far the last of these lies below the first, a logarithm; `mass`: their probability.
        """
        if self.min_p or self.top_k:
            return 0 < self.top_k <= tokens or (self.min_p > 0 and gap < math.log(self.min_p))
        return self.top_p < 1 and mass >= self.top_p

    def adjust(self, logits: torch.Tensor) -> None:
        """Change a row of logits, (vocabulary,), in place: what is forbidden, biased or penalized."""
        import torch

        if self._allowed is not None:
            forbidden = torch.ones_like(logits, dtype=torch.bool)
            forbidden[self._allowed] = False
            logits[forbidden] = _NEVER
        for sequence in self._bad:
            *before, last = sequence
            if not before or self.written[-len(before) :] == before:
                logits[last] = _NEVER
        if len(self.written) < self._least:
            logits[self._ends] = _NEVER
        for token, bias in self._bias.items():
            logits[token] += bias
        if (self._repetition, self._presence, self._frequency) != (1.0, 0.0, 0.0):
            self._penalize(logits)

    def _penalize(self, logits: torch.Tensor) -> None:
        import torch

        if self._counts is None or self._seen is None:
            self._counts = torch.zeros_like(logits)
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            self._seen[list(set(self.work.prompt_ids))] = True
            for token in self.written:
                self._count(token)
        scaled = torch.where(logits > 0, logits / self._repetition, logits * self._repetition)
        logits.copy_(torch.where(self._seen, scaled, logits))
        logits -= self._frequency * self._counts + self._presence * (self._counts > 0)

    def _count(self, token: int) -> None:
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True

    def take(self, token: int) -> None:
        self.written.append(token)
        self._count(token)


def choose(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[Token]:
    """The next token of each sequence. `logits`: float32, (sequences, vocabulary); they are changed."""
    import torch

    raw = logits.log_softmax(-1) if any(each.work.wants_logprobs for each in choosers) else None
    for row, chooser in enumerate(choosers):
        chooser.adjust(logits[row])
    ids = logits.argmax(-1)
    drawn = [row for row, chooser in enumerate(choosers) if not chooser.greedy]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        ids[rows] = _draw(logits[rows], [choosers[row] for row in drawn])
    tokens = []
    for row, (token, chooser) in enumerate(zip(ids.tolist(), choosers, strict=True)):
        chooser.take(token)
        tokens.append(Token(token) if raw is None else _with_logprobs(token, raw[row], chooser.work))
    return tokens


def _draw(logits: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
    """Token ids, (sequences,), by temperature, min_p, top_k and top_p.

    Few tokens are likely enough for these three, as a rule: they are found without sorting all others,
    which takes longer than the model's own step where the batch is wide.
    """
    import torch

    logits = logits / _column([max(each.temperature, 1e-5) for each in choosers], logits)
    total = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(min(_LIKELIEST, logits.shape[-1]))
    mass = (values - total).exp().sum(-1).tolist()
    gaps = (values[:, -1] - values[:, 0]).tolist()
    groups: dict[str, list[int]] = {"all": [], "likeliest": [], "sorted": []}
    for row, chooser in enumerate(choosers):
        enough = chooser.narrows_to(values.shape[1], gaps[row], mass[row])
        groups["likeliest" if enough else "sorted" if chooser.narrows else "all"].append(row)
    drawn = torch.empty(len(choosers), dtype=torch.long, device=logits.device)
    for kind, rows in groups.items():
        if not rows:
            continue
        index = torch.tensor(rows, device=logits.device)
        own = [choosers[row] for row in rows]
        if kind == "all":
            drawn[index] = _draw_ordered(logits[index], total[index], own)
        else:
            ordered = (values[index], ids[index]) if kind == "likeliest" else logits[index].sort(-1, True)
            places = _draw_ordered(ordered[0], total[index], own)
            drawn[index] = ordered[1].gather(-1, places[:, None])[:, 0]
    return drawn


def _draw_ordered(values: torch.Tensor, total: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
    """Places, (sequences,), in logits that fall from left to right, if anything narrows them.

    `total`: logsumexp of all there are.
    """
    import torch

    ranks = torch.arange(values.shape[1], device=values.device)[None]
    # p >= min_p * the likeliest one's, in logarithms
    least = _column([math.log(each.min_p) if each.min_p else _NEVER for each in choosers], values)
    out = (values < values[:, :1] + least) | (
        ranks >= _column([each.top_k or math.inf for each in choosers], values)
    )
    values = values.masked_fill(out, _NEVER)
    if any(each.top_p < 1 for each in choosers):
        # of what min_p and top_k leave, the smallest set that reaches the probability
        alone = torch.tensor([not (each.min_p or each.top_k) for each in choosers], device=values.device)
        total = torch.where(alone[:, None], total, values.logsumexp(-1, keepdim=True))
        probabilities = (values - total).exp()
        before = probabilities.cumsum(-1) - probabilities
        cut = (before >= _column([each.top_p for each in choosers], values)) & (ranks > 0)
        values = values.masked_fill(cut, _NEVER)
    # the largest of p / exponential noise is a draw by p; each row has noise of its own
    noise = torch.empty_like(values)
    for row, chooser in enumerate(choosers):
        noise[row].exponential_(generator=chooser.generator)
    return (values - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()).argmax(-1)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _with_logprobs(token: int, logprobs: torch.Tensor, work: Work) -> Token:
    if not work.wants_logprobs:
        return Token(token)
    own = logprobs[token]
    chosen = Candidate(token, own.item(), int((logprobs > own).sum()) + 1)
    if not work.top_logprobs:
        return Token(token, chosen)
    values, found = logprobs.topk(min(work.top_logprobs, len(logprobs)))
    ids = found.tolist()
    if chosen.rank <= len(ids):  # among equals, and in 16 bits there are some, the chosen one is first
        ids.remove(token) if token in ids else ids.pop()
        ids.insert(chosen.rank - 1, token)
    ranked = zip(ids, values.tolist(), strict=True)
    return Token(token, chosen, tuple(Candidate(*each, rank) for rank, each in enumerate(ranked, 1)))


def _token_sequences(words: Sequence[str], encode: Callable[[str], list[int]]) -> list[list[int]]:
    """The ways a word may be written: as it is, and behind a space where that is another token."""
    found: list[list[int]] = []
    for word in words:
        plain, spaced = encode(word.lstrip()), encode(" " + word.lstrip())
        found.append(plain)
        if plain and spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
            found.append(spaced)
    return [sequence for sequence in found if sequence]


def refused(params: Mapping[str, Any], vocabulary: int) -> str | None:
    """Why the token ids among the parameters can't be used: None when they can."""
    ids = [*(params.get("allowed_token_ids") or ()), *(params.get("stop_token_ids") or ())]
    ids += [int(token) for token in params.get("logit_bias") or ()]
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    return None if wrong is None else f"Token id {wrong} is not in the model's vocabulary of {vocabulary}."
