"""Which of two answers is better: pairs to judge, blind and in random order, and what the votes say."""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.comparing.cell import Cell, Place, Vote
from core.comparing.cells import CellStore
from core.comparing.scores import ENOUGH, NO_DIFFERENCE
from core.comparing.spec import ComparisonSpec
from core.errors import WorkbenchError

Winner = Literal["a", "b", "tie"]
HUMAN = "you"
_Z = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers to judge: set_a's is shown first (left), set_b's second; which is which was drawn.

    `done` of the `total` pairs have this voter's vote already.
    """

    prompt: int
    sample: int
    set_a: int
    set_b: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class WinRate:
    """Wins, losses and ties of `n` votes. `rate` counts a tie as half a win; `low` to `high` is its 95%
    interval. `verdict` is "no difference shown" where that holds one half or n is under ENOUGH."""

    wins: int
    losses: int
    ties: int
    rate: float
    low: float
    high: float
    verdict: Literal["wins", "loses", "no difference shown"]

    @property
    def n(self) -> int:
        return self.wins + self.losses + self.ties


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRates:
    """`pairs`: the first set of the key against the second, its place being the lower. `sets`: each set
    against all others. Sets without a vote are left out."""

    pairs: Mapping[tuple[int, int], WinRate]
    sets: Mapping[int, WinRate]


class Votes:
    """The votes of one catalogue, by people and by judge models. Safe from any thread."""

    def __init__(self, cells: CellStore) -> None:
        self._cells = cells

    def record(
        self,
        comparison_id: str,
        prompt: int,
        sample: int,
        set_a: int,
        set_b: int,
        winner: Winner,
        voter: str = HUMAN,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a vote, in place of an earlier one of this voter on the same two answers.

        Raises WorkbenchError for a place that the comparison doesn't have.
        """
        spec = self._spec(comparison_id)
        places = ((prompt, spec.prompts), (sample, spec.seeds), (set_a, spec.sets), (set_b, spec.sets))
        if set_a == set_b or not all(0 <= place < len(there) for place, there in places):
            raise WorkbenchError(
                f"There are no such two answers: prompt {prompt}, sample {sample}, sets {set_a} and {set_b}.",
                hint="Reload the page: the comparison is another one now.",
            )
        if winner not in ("a", "b", "tie"):
            raise WorkbenchError(f"A vote is a, b or tie, not {winner!r}.", hint="Choose one of them.")
        vote = {"prompt": prompt, "sample": sample, "set_a": set_a, "set_b": set_b, "winner": winner}
        self._cells.add_votes(comparison_id, [{**vote, "voter": voter, "details": dict(details or {})}])

    def next_pair(
        self, comparison_id: str, voter: str = HUMAN, sets: tuple[int, int] | None = None
    ) -> Pair | None:
        """A pair that this voter has not judged, of these two sets or (None) of any. None: all are.

        The same until it is judged, however often it is asked for. Answers that are equal, or not
        complete, are no pair.
        """
        pairs = pairs_of(self._spec(comparison_id), self._cells.cells(comparison_id), sets)
        judged = {
            (vote.prompt, vote.sample, *sorted((vote.set_a, vote.set_b)))
            for vote in self._cells.votes(comparison_id)
            if vote.voter == voter
        }
        left = [pair for pair in pairs if pair not in judged]
        if not left:
            return None
        # every two sets get their votes at the same pace, whenever the voter stops
        votes_of = Counter(pair[2:] for pair in judged)
        chosen = min(
            left, key=lambda pair: (votes_of[pair[2:]], _drawn(comparison_id, voter, "order", *pair))
        )
        prompt, sample, one, other = chosen
        if _drawn(comparison_id, voter, "side", *chosen) % 2:
            one, other = other, one
        return Pair(
            prompt=prompt,
            sample=sample,
            set_a=one,
            set_b=other,
            done=len(pairs) - len(left),
            total=len(pairs),
        )

    def list(self, comparison_id: str) -> list[Vote]:
        """Oldest first."""
        return self._cells.votes(comparison_id)

    def _spec(self, comparison_id: str) -> ComparisonSpec:
        kept = self._cells.find(comparison_id)
        if kept is None:
            raise WorkbenchError(f"There is no comparison {comparison_id}.", hint="It was deleted.")
        return kept.spec


def pairs_of(
    spec: ComparisonSpec, cells: Mapping[Place, Cell], sets: tuple[int, int] | None = None
) -> list[tuple[int, int, int, int]]:
    """(prompt, sample, set, later set) of all answers that can be held against each other."""
    wanted = [tuple(sorted(sets))] if sets else list(itertools.combinations(range(len(spec.sets)), 2))
    found = []
    for prompt, sample in itertools.product(range(len(spec.prompts)), range(len(spec.seeds))):
        for one, other in wanted:
            first, second = (cells.get(Place(prompt, place, sample)) for place in (one, other))
            if first is None or second is None or {first.state, second.state} != {"complete"}:
                continue
            if first.text.strip() != second.text.strip():
                found.append((prompt, sample, one, other))
    return found


def win_rates(votes: Iterable[Vote]) -> WinRates:
    """What the votes say of every two sets, and of each set against all others it met."""
    pairs: dict[tuple[int, int], Counter[str]] = {}
    sets: dict[int, Counter[str]] = {}
    for vote in votes:
        first, second = sorted((vote.set_a, vote.set_b))
        best = {"a": vote.set_a, "b": vote.set_b, "tie": None}[vote.winner]
        pairs.setdefault((first, second), Counter())[_outcome(best, first)] += 1
        for place in (first, second):
            sets.setdefault(place, Counter())[_outcome(best, place)] += 1
    return WinRates(
        pairs={key: _rate(pairs[key]) for key in sorted(pairs)},
        sets={key: _rate(sets[key]) for key in sorted(sets)},
    )


def _outcome(best: int | None, place: int) -> str:
    return "tie" if best is None else "win" if best == place else "loss"


def _rate(outcomes: Mapping[str, int]) -> WinRate:
    wins, losses, ties = (outcomes[name] for name in ("win", "loss", "tie"))
    n = wins + losses + ties
    rate = (wins + ties / 2) / n
    low, high = wilson(rate, n)
    verdict = NO_DIFFERENCE
    if n >= ENOUGH:
        verdict = "wins" if low > 0.5 else "loses" if high < 0.5 else NO_DIFFERENCE
    return WinRate(wins, losses, ties, rate, low, high, verdict)


def wilson(rate: float, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson, JASA 22, 1927), which has a width at 0 and 1 too.

    Ties as halves vary less than wins and losses do, so that with them it errs on the wide side.
    """
    centre = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
    # at 0 and 1 a bound is the share itself, but for rounding
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


def _drawn(*what: str | int) -> int:
    """A number by chance, the same whenever the same is asked: a page that is drawn again must not
    change the pair, or swap its sides."""
    digest = hashlib.sha256("\x00".join(map(str, what)).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8])
