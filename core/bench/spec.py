"""What a benchmark asks: a workload, a load, how often. Pure data, strict, since it is read back.

Names are those of `vllm bench` 0.32 where it has them. A specification is all there is to repeat
a benchmark; as JSON it goes in and out of pages, files and `python -m core bench`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from core import sampling
from core.run_spec import PromptSpec, Strict

Kind = Literal["throughput", "serve", "latency"]
Metric = Literal["ttft", "tpot", "itl", "e2el"]
Arrivals = Literal["poisson", "constant", "gamma"]
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "itl", "e2el")
MAX_PROMPTS = 100_000


class RandomWorkload(Strict):
    """Random token ids: `vllm bench`'s "random". Lengths in tokens, drawn evenly from
    length x (1 - range_ratio) to length x (1 + range_ratio); all prompts begin with the same `prefix_len`.
    """

    kind: Literal["random"] = "random"
    num_prompts: int = Field(default=200, ge=1, le=MAX_PROMPTS)
    input_len: int = Field(default=256, ge=1)
    output_len: int = Field(default=64, ge=1)
    range_ratio: float = Field(default=0.0, ge=0, lt=1)
    prefix_len: int = Field(default=0, ge=0)


class TableWorkload(Strict):
    """Rows of one's own table under a template: the true distribution of lengths.

    `num_prompts` rows are drawn with the seed (None: all, in their order). `output_len`: the exact
    length of every answer; None: each ends where the model ends it, or at the params' max_tokens.
    """

    kind: Literal["table"] = "table"
    path: str
    prompt: PromptSpec
    num_prompts: int | None = Field(default=200, ge=1, le=MAX_PROMPTS)
    output_len: int | None = Field(default=None, ge=1)


class ConversationWorkload(Strict):
    """A file of ShareGPT form: a JSON list (or lines) of {"conversations": [{"from", "value"}, ...]}.

    The first user turn is the prompt, the length of the first answer is the output's, unless
    `output_len` sets it. Drawn with the seed; too short ones are left out, as `vllm bench` does.
    """

    kind: Literal["sharegpt"] = "sharegpt"
    path: str
    num_prompts: int = Field(default=200, ge=1, le=MAX_PROMPTS)
    output_len: int | None = Field(default=None, ge=1)


class SharedPrefixWorkload(Strict):
    """Random prompts of which groups begin alike: `vllm bench`'s "prefix_repetition". Lengths in tokens."""

    kind: Literal["prefix_repetition"] = "prefix_repetition"
    num_prompts: int = Field(default=200, ge=1, le=MAX_PROMPTS)
    prefix_len: int = Field(default=256, ge=1)
    suffix_len: int = Field(default=64, ge=1)
    num_prefixes: int = Field(default=10, ge=1)
    output_len: int = Field(default=64, ge=1)


Workload = Annotated[
    RandomWorkload | TableWorkload | ConversationWorkload | SharedPrefixWorkload, Field(discriminator="kind")
]


class Load(Strict):
    """How requests arrive. `request_rate` in requests/s, None: all at once. `max_concurrency`: the most
    in flight; who has to wait for a place is not sent yet, and the wait is kept apart.

    arrivals "poisson": exponential gaps; "gamma": gaps of that shape (`burstiness` < 1: in bursts,
    > 1: more even, as `vllm bench serve`); "constant": equal gaps.
    """

    request_rate: float | None = Field(default=None, gt=0)
    max_concurrency: int | None = Field(default=None, ge=1)
    arrivals: Arrivals = "poisson"
    burstiness: float = Field(default=1.0, gt=0)

    @property
    def title(self) -> str:
        """Few words: "4 requests/s", "8 at once", "all at once"."""
        rate = "" if self.request_rate is None else f"{self.request_rate:g} requests/s"
        most = "" if self.max_concurrency is None else f"{self.max_concurrency} at once"
        return ", ".join(part for part in (rate, most) if part) or "all at once"


class Sweep(Strict):
    """Loads that are tried one after the other, from `start`, `factor` times more each, until the knee:
    where output tokens/s grow by less than `least_gain` (a share), or at `most_points`.
    """

    over: Literal["request_rate", "max_concurrency"]
    start: float = Field(default=1.0, gt=0)
    factor: float = Field(default=2.0, gt=1)
    least_gain: float = Field(default=0.05, ge=0, lt=1)
    most_points: int = Field(default=10, ge=2, le=64)


class BenchSpec(Strict):
    """One benchmark on the engine that is loaded.

    kind "throughput": all requests at once; "serve": one point for each of `loads`, or along `sweep`;
    "latency": one batch of `batch_size` equal-length prompts, `num_iters` times, after `num_iters_warmup`.
    `num_warmups` requests go before each point and count nowhere. Every point is measured `repeats`
    times, with the seeds seed, seed + 1, ... `goodput` holds the most milliseconds of "ttft", "tpot"
    and "e2el" that a good request may take. `params`: sampling parameters beside max_tokens.
    `group` is the same for benchmarks that were made together, such as one workload on several engines.
    """

    kind: Kind
    name: str = ""
    group: str = ""
    workload: Workload = RandomWorkload()
    loads: tuple[Load, ...] = (Load(),)
    sweep: Sweep | None = None
    batch_size: int = Field(default=8, ge=1)
    num_iters: int = Field(default=10, ge=1, le=1000)
    num_iters_warmup: int = Field(default=3, ge=0)
    num_warmups: int = Field(default=8, ge=0)
    repeats: int = Field(default=1, ge=1, le=100)
    seed: int = 0
    params: dict[str, Any] = Field(default_factory=lambda: {"temperature": 1.0})
    ignore_eos: bool = True
    percentile_metrics: tuple[Metric, ...] = METRICS
    metric_percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    goodput: dict[Literal["ttft", "tpot", "e2el"], float] = Field(default_factory=dict)

    @field_validator("params")
    @classmethod
    def _valid_params(cls, params: dict[str, Any]) -> dict[str, Any]:
        return sampling.validate(params)

    @model_validator(mode="after")
    def _sensible(self) -> BenchSpec:
        if self.kind == "serve" and not self.loads and self.sweep is None:
            raise ValueError("a serving benchmark needs at least one load, or a sweep")
        if any(not 0 < percentile < 100 for percentile in self.metric_percentiles):
            raise ValueError("percentiles lie between 0 and 100")
        if any(limit <= 0 for limit in self.goodput.values()):
            raise ValueError("goodput limits are milliseconds above 0")
        return self
