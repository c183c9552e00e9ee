"""What a column of references holds, and how answers fall on labels. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from core.evals import as_number, folded

MAX_LABELS = 20
_LABEL_CHARACTERS = 40

ReferenceType = Literal["text", "labels", "numbers", "json"]

APPLICABLE: Mapping[ReferenceType, tuple[str, ...]] = {
    "text": ("token_f1", "exact", "normalised", "rouge_l", "chrf"),
    "labels": ("normalised", "exact"),
    # not "normalised": SQuAD's drops the point of 1.5 and the sign of -5
    "numbers": ("numeric", "exact"),
    "json": ("json_fields",),
}
"""The metrics that say something about a type of reference, the most telling first."""


def as_text(value: Any) -> str | None:
    """A cell of a reference column as an answer would be written; None when there is no reference in it.

    4.0 is "4", since a column of whole numbers with a gap is often kept as doubles.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def as_object(value: Any) -> dict[str, Any] | None:
    """A cell as a JSON object: one already, or text that is one and nothing else."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


_AROUND_LABELS = " \t\r\n\"'“”‘’`*_.,;:!?()[]{}<>…。，、；：！？「」《》【】"  # not + and -: they are signs


def label_key(text: str) -> str:
    """What makes two spellings one label: case and width evened out, quotes and stops around it gone."""
    even = " ".join(folded(text).split())
    return even.strip(_AROUND_LABELS) or even


class ReferenceScan:
    """Finds out what a column holds by looking at its cells one by one.

    "json": every cell is a JSON object. "numbers": every cell is a number. "labels": at most
    20 different short texts, one of them at least twice. Otherwise "text". Whole numbers that
    are few enough (ratings) are "numbers" and have labels too.
    """

    def __init__(self) -> None:
        self._cells = 0
        self._numbers = self._objects = self._labelled = True
        self._labels: dict[str, str] = {}

    def add(self, value: Any) -> None:
        """`value` is a cell for which `as_text` is not None."""
        self._cells += 1
        text = as_text(value) or ""
        self._objects = self._objects and as_object(value) is not None
        number = as_number(text) if self._numbers or self._labelled else None
        self._numbers = self._numbers and number is not None
        if self._labelled:
            key = label_key(text)
            self._labels.setdefault(key, text.strip())
            whole = number is None or number.value == number.value.to_integral_value()
            self._labelled = len(key) <= _LABEL_CHARACTERS and len(self._labels) <= MAX_LABELS and whole

    @property
    def settled(self) -> bool:
        """Whether it is "text" whatever comes."""
        return not (self._numbers or self._objects or self._labelled)

    @property
    def type(self) -> ReferenceType:
        if not self._cells:
            return "text"
        if self._objects:
            return "json"
        return "numbers" if self._numbers else "labels" if self.labels else "text"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels as first spelt, sorted, numbers by value; empty when these are no labels."""
        if self._objects or not self._labelled or len(self._labels) == self._cells:
            return ()
        found = self._labels.values()
        return tuple(
            sorted(found, key=lambda text: as_number(text).value) if self._numbers else sorted(found)
        )


# -- labels ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LabelScore:
    """`support`: rows whose reference is the label. `precision` is None when it was never answered."""

    label: str
    precision: float | None
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """`counts[i][j]`: rows with reference `labels[i]` and answer `labels[j]`; the last j: any other."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        total = sum(map(sum, self.counts))
        return sum(self.counts[i][i] for i in range(len(self.labels))) / total

    def scores(self) -> tuple[LabelScore, ...]:
        """Of each label, in order. F1 = 2 TP / (2 TP + FP + FN), which needs no precision."""
        found = []
        for i, label in enumerate(self.labels):
            hits, support = self.counts[i][i], sum(self.counts[i])
            answered = sum(row[i] for row in self.counts)
            precision = hits / answered if answered else None
            found.append(
                LabelScore(label, precision, hits / support, 2 * hits / (answered + support), support)
            )
        return tuple(found)

    @property
    def macro_f1(self) -> float:
        """The mean of the labels' F1, each label counting the same (scikit-learn's average="macro")."""
        return statistics.fmean(score.f1 for score in self.scores())


class ConfusionCounter:
    """Adds rows up to a Confusion."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._index = {label_key(label): i for i, label in enumerate(labels)}
        self._counts = [[0] * (len(labels) + 1) for _label in labels]

    def add(self, answer: str, reference: str) -> None:
        """Raises KeyError for a reference that is none of the labels."""
        other = len(self.labels)
        self._counts[self._index[label_key(reference)]][self._index.get(label_key(answer), other)] += 1

    def confusion(self) -> Confusion:
        return Confusion(self.labels, tuple(map(tuple, self._counts)))
