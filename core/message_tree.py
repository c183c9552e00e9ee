"""Which message follows which. Pure: ids only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MessageTree:
    """Message -> the one it follows (None: nothing), in the order in which they were made."""

    parents: Mapping[str, str | None]

    def path(self, to: str | None) -> list[str]:
        """From the first message to `to`, or to the newest of all where `to` is none of them."""
        if not self.parents:
            return []
        at = to if to in self.parents else next(reversed(self.parents))
        path = []
        while at is not None:
            path.append(at)
            at = self.parents.get(at)
        return path[::-1]

    def versions(self, message_id: str) -> tuple[str, ...]:
        """This message and all others that follow the same one, oldest first."""
        parent = self.parents[message_id]
        return tuple(one for one, its_parent in self.parents.items() if its_parent == parent)

    def newest_after(self, message_id: str) -> str:
        """The message that was made last of this one and all that come after it."""
        newest, after = message_id, {message_id}
        for one, parent in self.parents.items():  # a message is made after the one it follows
            if parent in after:
                after.add(one)
                newest = one
        return newest
