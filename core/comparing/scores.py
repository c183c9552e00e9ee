"""What a set's answers are like, and how sets differ. Pure.

Figures of one answer are averaged over the samples of a prompt first: prompts are what a difference
must hold for, and samples of one prompt are no independent evidence. A model's thoughts are left out
of what is read of a text; its tokens and speed count them.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core import evals, structured
from core.comparing.cell import Cell, Place
from core.comparing.spec import ComparisonSpec
from core.reasoning import split
from core.references import APPLICABLE, ReferenceScan, ReferenceType, as_object

ENOUGH = 6
"""Prompts (or votes) below which no difference is claimed: even if all n agree, a sign test finds
2 * 0.5^n, under 5% from n = 6 on."""
NO_DIFFERENCE = "no difference shown"

Verdict = Literal["higher", "lower", "no difference shown"]
Unit = Literal["", "share", "tokens", "s", "tokens/s"]
_RESAMPLES, _DRAWN_UP_TO = 4_000, 1_000
_PAIRS_COMPARED = 45  # of samples of one prompt: all up to ten samples


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure's name in tables, its name for people, what it says, its unit, and which way is better."""

    name: str
    title: str
    help: str
    unit: Unit = ""
    better: Literal["higher", "lower", ""] = ""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(Metric(one.name, one.title, one.help, "share", "higher") for one in evals.METRICS.values()),
        Metric("valid", "Valid structure", "Answers that have the form asked for.", "share", "higher"),
        Metric("json", "Valid JSON", "Answers that are a JSON object or list.", "share", "higher"),
        Metric("output_tokens", "Tokens", "Length of the answer in tokens.", "tokens"),
        Metric("cut", "Cut", "Answers that max_tokens or the context cut off.", "share", "lower"),
        Metric("distinct_1", "Distinct-1", "Different words among all words of the answer.", "share"),
        Metric("distinct_2", "Distinct-2", "Different word pairs among all pairs of the answer.", "share"),
        Metric("repetition", "Repetition", "Runs of four words that came before.", "share", "lower"),
        Metric(
            "self_similarity", "Self-similarity", "How alike the samples of a prompt are (ROUGE-L).", "share"
        ),
        Metric(
            "mean_logprob",
            "Mean logprob",
            "How likely the model itself finds its words: log-probability a token, before sampling.",
        ),
        Metric("ttft_s", "First token", "Wait for the first token.", "s", "lower"),
        Metric("output_tokens_per_s", "Speed", "Tokens a second of one answer.", "tokens/s", "higher"),
    )
}


@dataclass(frozen=True, slots=True)
class SetScore:
    """A metric's mean over `n` prompts under one set, with a 95% interval where n is at least 2."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A set's mean minus the baseline's, over the `n` prompts that both have, with a 95% interval.

    `verdict`: "no difference shown" where the interval holds zero or n is under ENOUGH.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All figures of a comparison. `metrics` are those that say something here, the most telling first.

    `means` and `differences` go by (place of the set, metric); a set against itself has no difference.
    `finished` counts each set's complete answers by finish reason.
    """

    baseline: int
    metrics: tuple[str, ...]
    means: Mapping[tuple[int, str], SetScore]
    differences: Mapping[tuple[int, str], Difference]
    finished: Mapping[int, Mapping[str, int]]
    reference_type: ReferenceType | None


# -- one answer ---------------------------------------------------------------------


def distinct(text: str, n: int) -> float | None:
    """Different n-grams of words among all (Li et al., 'A Diversity-Promoting Objective Function',
    NAACL 2016). None for a text of under n words."""
    grams = _grams(evals.words(text), n)
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str, n: int = 4) -> float | None:
    """1 - different / all n-grams of words: seq-rep-n of Welleck et al., 'Neural Text Generation with
    Unlikelihood Training', ICLR 2020. None for a text of under n words."""
    share = distinct(text, n)
    return None if share is None else 1 - share


@functools.lru_cache(maxsize=20_000)
def _answer(text: str) -> str:
    """What a text says, without the thoughts before it."""
    return split(text).answer


def self_similarity(texts: Sequence[str]) -> float | None:
    """Mean ROUGE-L F1 of all pairs of texts; in the manner of Self-BLEU (Zhu et al., 'Texygen', SIGIR
    2018), without its need for long texts. 1: all the same. None for a single text."""
    pairs = list(itertools.islice(itertools.combinations(texts, 2), _PAIRS_COMPARED))
    return statistics.fmean(evals.rouge_l(one, other) for one, other in pairs) if pairs else None


def is_json(text: str) -> bool:
    """Whether the text is a JSON object or list and nothing else."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def cell_scores(
    cell: Cell,
    params: Mapping[str, Any] | None = None,
    reference: str | None = None,
    reference_type: ReferenceType = "text",
) -> dict[str, float]:
    """The figures of one complete answer, by metric; what was not measured is left out."""
    details = cell.details
    structure = (params or {}).get("structured_outputs")
    found = dict(_text_scores(cell.text))
    answer = _answer(cell.text)
    if structure is not None and (valid := structured.valid(structure, answer)) is not None:
        found["valid"] = float(valid)
    if reference is not None:
        found |= _reference_scores(answer, reference, reference_type)
    for name in ("output_tokens", "mean_logprob", "ttft_s", "output_tokens_per_s"):
        if details.get(name) is not None:
            found[name] = float(details[name])
    if details.get("finish_reason"):
        found["cut"] = float(details["finish_reason"] == "length")
    return found


# a page that is drawn again asks for the same figures again
@functools.lru_cache(maxsize=20_000)
def _text_scores(text: str) -> Mapping[str, float]:
    answer = _answer(text)
    figures = {
        "distinct_1": distinct(answer, 1),
        "distinct_2": distinct(answer, 2),
        "repetition": repetition(answer),
        "json": float(is_json(answer)),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


@functools.lru_cache(maxsize=20_000)
def _alike(answers: tuple[str, ...]) -> float | None:
    return self_similarity(answers)


@functools.lru_cache(maxsize=20_000)
def _reference_scores(answer: str, reference: str, kind: ReferenceType) -> Mapping[str, float]:
    metrics = {
        "exact": evals.exact,
        "normalised": evals.normalised,
        "token_f1": evals.token_f1,
        "rouge_l": evals.rouge_l,
        "chrf": evals.chrf,
        "numeric": evals.numeric,
        "json_fields": lambda said, wanted: evals.json_fields(said, as_object(wanted) or {}),
    }
    return {name: metrics[name](answer, reference) for name in APPLICABLE[kind]}


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


# -- sets ---------------------------------------------------------------------------


def score(spec: ComparisonSpec, cells: Mapping[Place, Cell], baseline: int | None = None) -> Scores:
    """All figures over the cells that are complete, each set held against `baseline` (None: the spec's)."""
    baseline = spec.baseline if baseline is None else baseline
    kind = _reference_type(spec)
    by_prompt = {
        (place, prompt): figures
        for place in range(len(spec.sets))
        for prompt in range(len(spec.prompts))
        if (figures := _prompt_figures(spec, cells, prompt, place, kind))
    }
    means, differences = {}, {}
    metrics = _telling(by_prompt.values())
    for place, name in itertools.product(range(len(spec.sets)), metrics):
        values = {
            prompt: by_prompt[place, prompt][name]
            for prompt in range(len(spec.prompts))
            if name in by_prompt.get((place, prompt), {})
        }
        if not values:
            continue
        means[place, name] = SetScore(
            statistics.fmean(values.values()), *interval(list(values.values())), len(values)
        )
        paired = [
            value - by_prompt[baseline, prompt][name]
            for prompt, value in values.items()
            if name in by_prompt.get((baseline, prompt), {})
        ]
        if place != baseline and paired:
            differences[place, name] = difference(paired)
    return Scores(
        baseline=baseline,
        metrics=metrics,
        means=means,
        differences=differences,
        finished=_finished(cells),
        reference_type=kind,
    )


def difference(paired: Sequence[float]) -> Difference:
    """What the paired differences, one a prompt, show. Raises ValueError for none."""
    low, high = interval(paired)
    verdict: Verdict = NO_DIFFERENCE
    if low is not None and high is not None and len(paired) >= ENOUGH:
        verdict = "higher" if low > 0 else "lower" if high < 0 else NO_DIFFERENCE
    return Difference(statistics.fmean(paired), low, high, len(paired), verdict)


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """A 95% bootstrap interval for the mean; (None, None) for a single value, which tells no spread.

    The percentile bootstrap is too narrow for few values: its tails are moved out by
    sqrt(n / (n - 1)) t / z, the "expanded percentile" interval of Hesterberg, 'What Teachers Should
    Know About the Bootstrap', The American Statistician 69 (2015), section 5.
    """
    return _interval(tuple(values)) if len(values) > 1 else (None, None)


@functools.lru_cache(maxsize=4_096)
def _interval(values: tuple[float, ...]) -> tuple[float, float]:
    n = len(values)
    normal = statistics.NormalDist()
    tail = normal.cdf(-math.sqrt(n / (n - 1)) * _student_t(0.975, n - 1))
    if n > _DRAWN_UP_TO:
        return evals.bootstrap_interval(values, confidence=1 - 2 * tail)
    low, high = np.quantile(_draws(n) @ np.asarray(values, dtype=float) / n, (tail, 1 - tail))
    return float(low), float(high)


# hundreds of figures over the same prompts: drawn once for all of them
@functools.lru_cache(maxsize=4)
def _draws(n: int) -> np.ndarray:
    """How often each of n values was drawn in each resample (resamples, n); the same every time."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(float)


def _student_t(p: float, freedom: int) -> float:
    """The quantile of Student's t: exact for 1 and 2 degrees of freedom, otherwise the Cornish-Fisher
    expansion (Abramowitz & Stegun, 26.7.5), within 1% from 3 degrees on."""
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, v = statistics.NormalDist().inv_cdf(p), freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _prompt_figures(
    spec: ComparisonSpec, cells: Mapping[Place, Cell], prompt: int, place: int, kind: ReferenceType | None
) -> dict[str, float]:
    """Each metric's mean over the samples of one prompt under one set."""
    found = [cells.get(Place(prompt, place, sample)) for sample in range(len(spec.seeds))]
    complete = [cell for cell in found if cell is not None and cell.state == "complete"]
    reference = spec.prompts[prompt].reference
    each = [cell_scores(cell, spec.sets[place].params, reference, kind or "text") for cell in complete]
    names = dict.fromkeys(name for figures in each for name in figures)
    means = {name: statistics.fmean(one[name] for one in each if name in one) for name in names}
    alike = _alike(tuple(_answer(cell.text) for cell in complete))
    return means if alike is None else {**means, "self_similarity": alike}


def _telling(figures: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """The metrics measured anywhere, in METRICS' order; valid JSON only where something is."""
    measured: Counter[str] = Counter()
    for one in figures:
        measured.update({name: 1 for name in one if name != "json" or one[name]})
    return tuple(name for name in METRICS if measured[name])


def _reference_type(spec: ComparisonSpec) -> ReferenceType | None:
    scan = ReferenceScan()
    references = [item.reference for item in spec.prompts if item.reference is not None]
    for reference in references:
        scan.add(reference)
    return scan.type if references else None


def _finished(cells: Mapping[Place, Cell]) -> dict[int, Counter[str]]:
    finished: dict[int, Counter[str]] = {}
    for place, cell in cells.items():
        if cell.state == "complete":
            reason = cell.details.get("finish_reason") or "stop"
            finished.setdefault(place.set, Counter())[reason] += 1
    return finished
