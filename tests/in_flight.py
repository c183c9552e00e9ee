"""How many requests of a benchmark were in flight together."""

from collections.abc import Sequence

from core.bench.records import RequestRecord


def most_at_once(records: Sequence[RequestRecord]) -> int:
    """A request that is sent as another ends doesn't overlap it."""
    ends = [(record.start_s + record.e2el_s, -1) for record in records]
    changes = sorted([*((record.start_s, 1) for record in records), *ends])
    count, most = 0, 0
    for _at, change in changes:
        count += change
        most = max(most, count)
    return most
