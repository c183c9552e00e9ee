"""How well an answer agrees with its reference: the metrics, and an interval for their mean. Pure.

A metric takes the answer and the reference of one row and gives a figure from 0 (nothing
agrees) to 1. Text in any script works: Chinese characters and Japanese kana, which are
written without spaces, count as one token each; Korean and all others go by their spaces.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

_BOOTSTRAP_UP_TO = 10_000
_BLOCK_DRAWS = 1_000_000  # index draws held at once: 8 MB


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name in tables, its name for people, and what it says."""

    name: str
    title: str
    help: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact", "Exact match", "The answer is the reference, outer white space aside."),
        Metric(
            "normalised",
            "Normalised match",
            "The same once case, width, punctuation, a/an/the and white space are evened out, as in SQuAD.",
        ),
        Metric("token_f1", "Token F1", "Words shared, in any order (SQuAD). Chinese goes by the character."),
        Metric("rouge_l", "ROUGE-L", "F1 of the longest run of words shared in order, gaps allowed."),
        Metric("chrf", "chrF", "F2 of the character n-grams shared, n from 1 to 6, from 0 to 1."),
        Metric(
            "numeric", "Numeric match", "The answer's last number is the reference, within the tolerance."
        ),
        Metric("json_fields", "JSON fields", "Share of the reference's fields that the answer has equal."),
    )
}


# -- text ---------------------------------------------------------------------


class _Translation(dict[int, str | None]):
    """For str.translate: asks `rule` about each character once. None deletes it, and fast ("" is slow)."""

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str | None:
        replacement = self[code] = self._rule(chr(code))
        return replacement


def _is_unspaced(character: str) -> bool:
    """Han and kana."""
    code = ord(character)
    return (
        0x3400 <= code <= 0x9FFF
        or 0x3040 <= code <= 0x30FF
        or 0x31F0 <= code <= 0x31FF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x3FFFF
        or code in (0x3005, 0x3007)
    )


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _unpunctuated(character: str) -> str | None:
    return None if _is_punctuation(character) else character


def _singly(character: str) -> str:
    return f" {character} " if _is_unspaced(character) else character


def _letters_and_digits(character: str) -> str:
    return " " if unicodedata.category(character)[0] in "PSZC" else _singly(character)


_NO_PUNCTUATION = _Translation(_unpunctuated)
_SINGLY = _Translation(_singly)
_WORDS = _Translation(_letters_and_digits)
_ARTICLES = frozenset({"a", "an", "the"})


def folded(text: str) -> str:
    """Case and width evened out: NFKC, then Unicode's case folding."""
    return unicodedata.normalize("NFKC", text).casefold()


def exact(answer: str, reference: str) -> float:
    """1 when both are the same characters; white space around them does not count."""
    return float(answer.strip() == reference.strip())


def normalise(text: str) -> str:
    """Case, punctuation, English articles and white space evened out, NFKC first.

    `normalize_answer` of the SQuAD 1.1 evaluation script (Rajpurkar et al., EMNLP 2016), with
    Unicode's punctuation beside ASCII's.
    """
    words = folded(text).translate(_NO_PUNCTUATION).split()
    return " ".join([word for word in words if word not in _ARTICLES])


def normalised(answer: str, reference: str) -> float:
    """1 when both are the same once normalised: SQuAD's exact match."""
    return float(normalise(answer) == normalise(reference))


def token_f1(answer: str, reference: str) -> float:
    """F1 of the bags of tokens of both, normalised.

    `compute_f1` of the SQuAD 2.0 script (Rajpurkar et al., ACL 2018): without tokens on one
    side it is 1 if the other has none either. Chinese by characters as in CMRC 2018 (Cui et al., 2019).
    """
    return token_f1_of(normalise(answer), normalise(reference))


def token_f1_of(answer: str, reference: str) -> float:
    """`token_f1` of two texts that are normalised already."""
    said, wanted = answer.translate(_SINGLY).split(), reference.translate(_SINGLY).split()
    return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """F1 (beta 1) of the longest common subsequence of words (Lin, 'ROUGE', ACL 2004 workshop).

    `words` as in Google's rouge-score without stemming: lower case, everything but letters and
    digits separates; letters of all scripts here.
    """
    said, wanted = words(answer), words(reference)
    return _f1(LCSseq.similarity(said, wanted), len(said), len(wanted))


def words(text: str) -> list[str]:
    """The text's words as ROUGE-L counts them: case folded, no punctuation, Han and kana singly."""
    return folded(text).translate(_WORDS).split()


def _f1(common: int, said: int, wanted: int) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return 2 * common / (said + wanted)


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF  # 80 ms, and only this metric needs it

    return CHRF()


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF2 (Popović, WMT 2015) as sacrebleu computes it, divided by 100.

    Character n-grams of 1 to 6 without white space, no words, case kept; orders that one
    of the two is too short for are left out.
    """
    if not answer.strip() and not reference.strip():
        return 1.0
    return _chrf().sentence_score(answer, [reference]).score / 100


# -- numbers and JSON ------------------------------------------------------------

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<!\d\.)"  # neither H2O nor v1.2.3
    r"(?P<number>[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?)"
    r"\s?(?P<percent>%)?",
    re.ASCII,
)
_CURRENCY = "$€£¥"
_EXACTLY = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written: 45% is 45 with `percent`."""

    value: Decimal
    percent: bool


def find_number(text: str) -> Number | None:
    """The last number in the text: where answers end that explain themselves first.

    The last one is what the "flexible-extract" filter of lm-evaluation-harness takes for GSM8K.
    English notation: 1,234.5 and 1e-3; digits within a word (H2O) or a version (v1.2.3) are no numbers.
    """
    last = None
    for found in _NUMBER.finditer(unicodedata.normalize("NFKC", text).replace("−", "-")):
        last = found
    return None if last is None else _number(last)


def _number(found: re.Match[str]) -> Number:
    return Number(Decimal(found["number"].replace(",", "")), found["percent"] is not None)


def as_number(text: str) -> Number | None:
    """The text as a number when it is nothing else, but for a currency sign before it."""
    plain = unicodedata.normalize("NFKC", text).replace("−", "-").strip().lstrip(_CURRENCY)
    found = _NUMBER.fullmatch(plain)
    return None if found is None else _number(found)


def numeric(answer: str, reference: str, tolerance: float = 1e-6) -> float:
    """1 when the answer's last number is at most `tolerance` (absolute) from the reference's.

    Compared as decimals, so 1.1 is within 0.1 of 1.0, and long ids keep all their digits.
    When only one side has a percent sign, 45% agrees with 45 and with 0.45.
    """
    said, wanted = find_number(answer), as_number(reference) or find_number(reference)
    if said is None or wanted is None:
        return 0.0
    pairs = [(said.value, wanted.value)]
    if said.percent and not wanted.percent:
        pairs.append((said.value.scaleb(-2, _EXACTLY), wanted.value))
    elif wanted.percent and not said.percent:
        pairs.append((said.value, wanted.value.scaleb(-2, _EXACTLY)))
    return float(any(_near(one, other, tolerance) for one, other in pairs))


def _near(one: Decimal, other: Decimal, tolerance: float) -> bool:
    # the decimal that was typed, not the double next to it
    return _EXACTLY.subtract(one, other).copy_abs() <= Decimal(repr(tolerance))


def json_fields(answer: str, reference: Mapping[str, Any], tolerance: float = 0.0) -> float:
    """Share of the reference's top-level fields that the answer's object has with an equal value.

    The answer is JSON, or holds an object between other words. Numbers agree within
    `tolerance`, text without the white space around it, lists and objects as a whole.
    """
    said = find_object(answer)
    if said is None:
        return 0.0
    if not reference:
        return float(not said)
    return sum(
        name in said and _same_value(said[name], value, tolerance) for name, value in reference.items()
    ) / len(reference)


def find_object(text: str) -> dict[str, Any] | None:
    """The text as a JSON object, or the first JSON object in it."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _attempt in range(20):  # an answer full of braces is not tried from each of them
        if start < 0:
            break
        try:
            found, _end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # RecursionError: ten thousand braces
            start = text.find("{", start + 1)
        else:
            return found
    return None


def _same_value(said: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(said, bool) or isinstance(wanted, bool):
        return said is wanted
    if isinstance(said, int | float) and isinstance(wanted, int | float):
        if not math.isfinite(said) or not math.isfinite(wanted):
            return said == wanted
        return _near(Decimal(repr(said)), Decimal(repr(wanted)), tolerance)
    if isinstance(said, str) and isinstance(wanted, str):
        return said.strip() == wanted.strip()
    return said == wanted


# -- intervals --------------------------------------------------------------------------


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """An interval for the mean of `values`, of which there are at least one.

    Percentile bootstrap (Efron & Tibshirani, 1993, chapter 13). Above 10,000 values the normal
    approximation, mean ± z s/√n, which no longer differs from it to three digits and costs no memory.
    Values that are all the same give an interval without width: they say nothing of their spread.
    """
    data = np.asarray(values, dtype=float)
    if not data.size:
        raise ValueError("An interval needs at least one value.")
    tail = (1 - confidence) / 2
    if data.size > _BOOTSTRAP_UP_TO:
        half = statistics.NormalDist().inv_cdf(1 - tail) * data.std(ddof=1) / math.sqrt(data.size)
        mean = data.mean()
        return float(max(mean - half, data.min())), float(min(mean + half, data.max()))
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_DRAWS // data.size)
    means = np.concatenate(
        [
            data[generator.integers(data.size, size=(min(block, resamples - done), data.size))].mean(axis=1)
            for done in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)
