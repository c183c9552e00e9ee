"""How fast this device could serve this model, and how much of that was reached. Pure arithmetic.

The roofline of Williams, Waterman & Patterson ('Roofline: An Insightful Visual Performance Model for
Multicore Architectures', Communications of the ACM 52(4), 2009): work that moves `bytes` and computes
`flops` takes at least max(bytes / bandwidth, flops / rate). One step of decoding b requests of c tokens

    moves     the weights once, and the keys and values of b x c tokens;
    computes  b x (2 x the weights that a token goes through + 4 x heads x head size x c, in each layer).

Reading prompts computes the same of each of their tokens, the output's matrix once a prompt. Left out,
because a perfect engine needs none of it: activations, sampling, scheduling, traffic between devices,
and weights that are read again for each part of a long prompt. So 100% is out of reach, and a small
model, whose steps are many small pieces of work, stays further away. One that fits the processor's own
caches may come out above 100%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.bench.records import Point, RequestRecord
from core.models import fit_sizes
from core.models.facts import Attention, ModelFacts
from core.types import EngineSpec

Bound = Literal["memory", "compute"]
_MOST_PROMPTS = 0.75
"""Of the time of decoding: beyond, what is left is mostly the error of the device's rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model as work. Bytes of the weights that every token needs, and of all experts together;
    `matrix_flops` of one token, of which `output_flops` are the vocabulary's matrix."""

    shared_bytes: float
    expert_bytes: float
    experts: int
    experts_per_token: int
    kv_number_bytes: float
    attention: tuple[Attention, ...]
    heads: int
    matrix_flops: float
    output_flops: float

    def weights_bytes(self, batch: float) -> float:
        """Read in one step: of the experts those that `batch` tokens choose, if each chooses evenly."""
        if not self.experts:
            return self.shared_bytes
        left_out = (1 - self.experts_per_token / self.experts) ** batch
        return self.shared_bytes + self.expert_bytes * (1 - left_out)

    def kv_bytes(self, context: float) -> float:
        """Keys and values that one more token of a request looks at."""
        return self.kv_number_bytes * sum(
            group.layers * group.numbers_per_token * _seen(group, context) for group in self.attention
        )

    def attention_flops(self, context: float) -> float:
        """Of one token that looks at `context` others: queries by keys, weights by values."""
        return sum(
            4 * group.layers * self.heads * group.head_dim * _seen(group, context)
            for group in self.attention
            if group.kind != "state"
        )

    def prompt_flops(self, tokens: int, cached: int = 0) -> float:
        """Of reading a prompt whose first `cached` tokens are known already."""
        read = tokens - cached
        middle = cached + read / 2
        matrices = (self.matrix_flops - self.output_flops) * read + self.output_flops
        return matrices + read * self.attention_flops(middle)


def _seen(group: Attention, context: float) -> float:
    return min(context, group.window) if group.window else context


def work_of(facts: ModelFacts, spec: EngineSpec, weights_bytes: int | None = None) -> Work | str:
    """The model of `facts` loaded as `spec` says; a sentence where that can't be told.

    `weights_bytes`: as the engine reports them.
    """
    parameters, active = facts.parameters, facts.active_parameters or facts.parameters
    if not parameters or not active:
        return "This model's parameters can't be counted from its files."
    if spec.speculative_config is not None:
        return "With speculative decoding a step writes several tokens, how many depends on the text."
    total = weights_bytes or fit_sizes.weights_bytes(facts, spec)
    per_parameter = total / parameters
    # Of a vocabulary's table for the input, a step reads a row a token; one for both is read whole.
    table = facts.vocab_size * facts.hidden_size
    looked_up = max(0, (facts.embedding_parameters or table) - table)
    experts = facts.expert_parameters * per_parameter
    return Work(
        shared_bytes=total - looked_up * per_parameter - experts,
        expert_bytes=experts,
        experts=facts.experts if experts else 0,
        experts_per_token=facts.experts_per_token,
        kv_number_bytes=fit_sizes.kv_number_bytes(facts, spec),
        attention=facts.attention,
        heads=facts.heads,
        matrix_flops=2.0 * (active - looked_up),
        output_flops=2.0 * table,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """A model on a device. `bandwidth` in bytes/s and `flops` in FLOP/s are those of one copy of the
    model, on all the devices that it is divided over; `copies` share the requests.
    """

    work: Work
    bandwidth: float
    flops: float
    copies: int = 1

    def step_s(self, batch: float, context: float) -> tuple[float, Bound]:
        """The least seconds of a step that writes one token for each of `batch` requests, and its bound."""
        batch = batch / self.copies
        moved = self.work.weights_bytes(batch) + batch * self.work.kv_bytes(context)
        computed = batch * (self.work.matrix_flops + self.work.attention_flops(context))
        memory, compute = moved / self.bandwidth, computed / self.flops
        return max(memory, compute), "memory" if memory >= compute else "compute"

    def decode_tokens_per_s(self, batch: float, context: float) -> float:
        return batch / self.step_s(batch, context)[0]

    def prompt_s(self, prompts: Sequence[tuple[int, int]]) -> float:
        """The least seconds of reading prompts of (tokens, of them cached), together."""
        computed = sum(self.work.prompt_flops(tokens, cached) for tokens, cached in prompts)
        moved = self.work.weights_bytes(math.inf) if prompts else 0.0
        return max(computed / self.flops / self.copies, moved / self.bandwidth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A point under the roof. `batch` and `context`: requests of a step and tokens of a request, on average
    over the tokens written. `tokens_per_s` is of decoding alone: `prompts_s`, the least that reading
    prompts meanwhile takes, is taken off the `decode_s` seconds in which answers were written.

    `least_s`: the least seconds of the whole point, of the `wall_s` that it took.
    """

    batch: float
    context: float
    tokens_per_s: float
    possible: float
    bound: Bound
    decode_s: float
    prompts_s: float
    least_s: float
    wall_s: float

    @property
    def share(self) -> float:
        """Of what the device can give while it decodes."""
        return self.tokens_per_s / self.possible

    @property
    def whole_share(self) -> float:
        """Of what it can give, prompts included, from the first request to the last answer."""
        return self.least_s / self.wall_s

    @property
    def words(self) -> str:
        """One sentence: "Decode reaches 71% of what this memory can give"."""
        giver = "what this memory can give" if self.bound == "memory" else "what this device can compute"
        return f"Decode reaches {self.share:.0%} of {giver}"


def reached(point: Point, roof: Roof) -> Reached | str:
    """How near a finished point came to the roof; a sentence where that can't be told."""
    records = [record for record in point.records if record.ok and record.e2el_s and record.output_len]
    if not records:
        return "This point's requests weren't kept."
    timed = [record for record in records if record.tpot_s]
    if not timed:
        return "Its answers have one token each, or came whole: decoding can't be told from reading prompts."
    decode_s, steps = _steps(timed)
    tokens = sum(record.output_len - 1 for record in timed)
    if steps <= 0 or decode_s <= 0:
        return "The times of its tokens weren't measured."
    batch = tokens / steps
    context = (
        sum((record.output_len - 1) * (record.input_len + record.output_len / 2) for record in timed) / tokens
    )
    first = min(record.start_s + (record.ttft_s or 0) for record in timed)
    meanwhile = [record for record in timed if record.start_s + (record.ttft_s or 0) > first]
    prompts_s = roof.prompt_s(_prompts(meanwhile))
    if prompts_s > _MOST_PROMPTS * decode_s:
        return (
            "Reading prompts must take most of this point's time, so that decoding can't be told from it: "
            "ask for longer answers."
        )
    step_s, bound = roof.step_s(batch, context)
    begin = min(record.start_s for record in records)
    wall_s = max(record.start_s + (record.e2el_s or 0) for record in records) - begin
    return Reached(
        batch=batch,
        context=context,
        tokens_per_s=tokens / (decode_s - prompts_s),
        possible=batch / step_s,
        bound=bound,
        decode_s=decode_s,
        prompts_s=prompts_s,
        least_s=steps * step_s + roof.prompt_s(_prompts(records)),
        wall_s=wall_s,
    )


def _prompts(records: Sequence[RequestRecord]) -> list[tuple[int, int]]:
    return [(record.input_len, min(record.cached_tokens or 0, record.input_len)) for record in records]


def _steps(records: Sequence[RequestRecord]) -> tuple[float, float]:
    """(Seconds in which some answer was being written, steps in which its tokens came).

    Between its first and last token each request gets one in every step, as engines that batch
    continuously do: so at any moment there are 1 / TPOT steps a second, on average over who is there.
    """
    events = []
    for record in records:
        begin = record.start_s + (record.ttft_s or 0)
        rate = 1 / (record.tpot_s or math.inf)
        events += [(begin, 1, rate), (record.start_s + (record.e2el_s or 0), -1, -rate)]
    events.sort(key=lambda event: event[0])
    seconds = steps = rates = 0.0
    present, before = 0, events[0][0]
    for at_s, change, rate in events:
        if present:
            seconds += at_s - before
            steps += (at_s - before) * rates / present
        present, rates, before = present + change, rates + rate, at_s
    return seconds, steps


def roof_over(
    facts: ModelFacts, spec: EngineSpec, bandwidth: float, flops: float, weights_bytes: int | None = None
) -> Roof | str:
    """The roof of a model that is loaded as `spec` says, on devices of these rates each."""
    work = work_of(facts, spec, weights_bytes)
    if isinstance(work, str):
        return work
    devices = (spec.tensor_parallel_size or 1) * (spec.pipeline_parallel_size or 1)
    copies = spec.data_parallel_size or 1
    return Roof(work=work, bandwidth=bandwidth * devices, flops=flops * devices, copies=copies)


def curve(roof: Roof, context: float, most: float) -> list[tuple[float, float]]:
    """(requests of a step, possible tokens/s) up to twice `most` requests, for a chart."""
    end = max(2.0, 2 * most)
    points = 48
    return [
        (batch, roof.decode_tokens_per_s(batch, context))
        for batch in (end ** (index / points) for index in range(points + 1))
    ]


def as_dict(found: Reached) -> Mapping[str, Any]:
    """For JSON."""
    names = ("batch", "context", "tokens_per_s", "possible", "bound", "prompts_s", "least_s", "wall_s")
    return {name: getattr(found, name) for name in names} | {
        "share": found.share,
        "whole_share": found.whole_share,
    }
