"""The requests that the API works on now."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from core.api.records import ApiKey, KeyLimits, LiveRequest
from core.types import Priority

_NO_KEY = KeyLimits()


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One HTTP request, from its first byte to its last. Lives on the runtime's loop.

    Whatever answers it counts its tokens here (`read`, `wrote`), asks the engine with its `priority`, and
    lets itself be ended (`abortable`). `failed`: the status to book where an answer that began well did not
    end so.
    """

    request_id: str
    endpoint: str
    key: ApiKey | None = None
    model: str = ""
    began_s: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float | None = None
    failed: int | None = None
    is_aborted: bool = False
    unreported: list[Callable[[], int]] = field(default_factory=list)
    _enders: list[Callable[[], None]] = field(default_factory=list)

    @property
    def key_id(self) -> str | None:
        return self.key.key_id if self.key else None

    @property
    def priority(self) -> int:
        """As engines have it: among the API's requests by key, after chats and before batches."""
        limits = self.key.limits if self.key else _NO_KEY
        return Priority.API + limits.priority

    def read(self, tokens: int) -> None:
        """A prompt of so many tokens goes to the engine."""
        self.prompt_tokens += tokens

    def wrote(self, tokens: int) -> None:
        """The engine wrote so many tokens more."""
        if tokens:
            self.output_tokens += tokens
            if self.first_token_s is None:
                self.first_token_s = time.monotonic()

    @property
    def tokens_so_far(self) -> int:
        """Tokens written, those included that are told only at the end of an answer that isn't streamed."""
        return self.output_tokens + sum(count() for count in self.unreported)

    @contextlib.contextmanager
    def abortable(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `abort` call `end`, on the loop, while this lasts."""
        self._enders.append(end)
        if self.is_aborted:
            end()
        try:
            yield
        finally:
            self._enders.remove(end)

    def abort(self) -> None:
        """End it. On the loop."""
        self.is_aborted = True
        for end in list(self._enders):
            end()

    def as_live(self, now: float) -> LiveRequest:
        tokens = self.tokens_so_far
        return LiveRequest(
            request_id=self.request_id,
            key_name=self.key.name if self.key else "",
            endpoint=self.endpoint,
            model=self.model,
            state="generating" if tokens else "waiting",
            prompt_tokens=self.prompt_tokens,
            output_tokens=tokens,
            since_s=now - self.began_s,
        )


class LiveCalls:
    """All calls at work, by request id. Changed on the loop only, read from any thread."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    @contextlib.contextmanager
    def at_work(self, call: Call, *, listed: bool = True) -> Iterator[None]:
        """Make the call the `current` one of this task and those it starts, and list it."""
        if listed:
            self._calls[call.request_id] = call
        token = _current.set(call)
        try:
            yield
        finally:
            _current.reset(token)
            self._calls.pop(call.request_id, None)

    def find(self, request_id: str) -> Call | None:
        return self._calls.get(request_id)

    def all(self) -> tuple[Call, ...]:
        return tuple(self._calls.values())

    def tokens_of(self, key_id: str) -> int:
        """Tokens of a key's calls at work, which no book has yet."""
        calls = (call for call in self.all() if call.key_id == key_id)
        return sum(call.prompt_tokens + call.output_tokens for call in calls)


_current: contextvars.ContextVar[Call] = contextvars.ContextVar("api_call")


def current() -> Call:
    """The call that this task works for. Raises LookupError outside of one."""
    return _current.get()
