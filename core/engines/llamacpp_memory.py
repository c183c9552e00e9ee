"""Which sequence has which place in llama.cpp's memory of keys and values. Pure: it only decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Place:
    """One of llama.cpp's sequences. `tokens`: those whose keys and values it holds, in order.

    `reserved`: tokens that its owner may need in all; 0 while it has none, and only remembers.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    reserved: int = 0
    used_at: int = 0

    @property
    def free(self) -> bool:
        return self.reserved == 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What to do before a sequence begins in `place`: forget `cleared`, keep or copy `shared` first tokens.

    `source` is the place they are copied from; None when they are in `place` already.
    """

    place: Place
    shared: int
    source: Place | None
    cleared: tuple[Place, ...]


class Places:
    """`count` sequences that share `cells` tokens of memory. What has ended is kept for its prefix until
    its room is needed."""

    def __init__(self, count: int, cells: int, *, can_rewind: bool) -> None:
        self.cells = cells
        self._can_rewind = can_rewind
        self._places = [Place(number) for number in range(count)]
        self._clock = 0

    def take(self, prompt: Sequence[int], reserved: int, *, spare: int = 0) -> Taken | None:
        """A place for a sequence that will have `reserved` tokens at most, or None while there is no room.

        `spare` is left to others, unless nobody else is at work.
        """
        free = [place for place in self._places if place.free]
        live = sum(place.reserved for place in self._places)
        if not free or (live and live + reserved + spare > self.cells):
            return None
        shared, source = self.longest_prefix(prompt)
        place = min(free, key=lambda each: (bool(each.tokens), each.used_at))
        if source is not None and source.free:
            tight = live + reserved + self._remembered() > self.cells
            if tight or place is source or 2 * shared >= len(source.tokens):
                place = source  # what it holds beyond the prefix is the least loss
        cleared = () if place is source else self._empty([place] if place.tokens else [])
        cleared += self._make_room(live + reserved, {place.number, source.number if source else -1})
        self._clock += 1
        place.tokens = list(prompt[:shared])
        place.reserved, place.used_at = reserved, self._clock
        return Taken(place, shared, None if place is source else source, cleared)

    def leave(self, place: Place) -> None:
        """Its owner has ended; what it holds is remembered until its room is needed."""
        place.reserved = 0

    @property
    def unused(self) -> int:
        """Tokens of memory that are neither written nor remembered."""
        return self.cells - sum(len(place.tokens) for place in self._places)

    def forget_all_idle(self) -> tuple[Place, ...]:
        """Empty the places that only remember."""
        return self._empty(place for place in self._places if place.free and place.tokens)

    def forget_all(self) -> None:
        """Nothing is held any more, also of those at work: their sequences can't go on."""
        self._empty(self._places)

    def longest_prefix(self, prompt: Sequence[int]) -> tuple[int, Place | None]:
        """How many of the prompt's first tokens some place holds, and which.

        Never all of them: the last one is always read.
        """
        best: tuple[int, Place | None] = (0, None)
        if self._can_rewind:
            for place in self._places:
                most = min(len(place.tokens), len(prompt) - 1)
                shared = common_prefix(place.tokens, prompt, most) if most > best[0] else 0
                if shared > best[0]:
                    best = (shared, place)
        return best

    def _make_room(self, live: int, kept: set[int]) -> tuple[Place, ...]:
        """Forget the oldest, until what is remembered fits beside what is at work."""
        idle = sorted((place for place in self._places if place.free and place.tokens), key=_age)
        idle = [place for place in idle if place.number not in kept]
        remembered = self._remembered()
        going = []
        for place in idle:
            if live + remembered <= self.cells:
                break
            remembered -= len(place.tokens)
            going.append(place)
        return self._empty(going)

    def _remembered(self) -> int:
        return sum(len(place.tokens) for place in self._places if place.free)

    def _empty(self, places: Iterable[Place]) -> tuple[Place, ...]:
        going = tuple(places)
        for place in going:
            place.tokens = []
        return going


def _age(place: Place) -> int:
    return place.used_at


def common_prefix(first: Sequence[int], second: Sequence[int], most: int) -> int:
    """How many of the first `most` tokens are equal: halves are compared as lists, which is fast."""
    low, high = 0, most
    if list(first[:high]) == list(second[:high]):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if list(first[low:middle]) == list(second[low:middle]):
            low = middle
        else:
            high = middle
    return low
