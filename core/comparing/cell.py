"""One answer of a comparison, where it stands, and a vote on two of them. Data only."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from core.answers import LiveAnswer

CellState = Literal["waiting", "generating", "complete", "stopped", "interrupted", "error", "missing"]


class Place(NamedTuple):
    """Which cell: the prompt's, the set's and the seed's place in the specification, from 0."""

    prompt: int
    set: int
    sample: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One answer. `live` while it is generated; `details` as `core.answers.Answer.details`.

    "waiting" will be asked yet; "missing" was not asked and nobody is at it.
    """

    text: str
    state: CellState
    details: Mapping[str, Any] = field(default_factory=dict)
    live: LiveAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """Which of two answers to one prompt was found better: of set_a ("a"), of set_b ("b"), or neither."""

    vote_id: str
    created_at: dt.datetime
    voter: str
    prompt: int
    sample: int
    set_a: int
    set_b: int
    winner: Literal["a", "b", "tie"]
    details: Mapping[str, Any]
