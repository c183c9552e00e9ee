"""A backend for tests of the worker: it writes the letters after the prompt's last one, one a step."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from core.engines.worker_text import Candidate, Key, Token, Work
from core.errors import ModelError, RequestRejected


def make(*, report: Any, fail: str = "", **options: Any) -> Letters:
    report("Sharpening the pencil")
    if fail == "ours":
        raise ModelError("There is no pencil.", hint="Buy one.")
    if fail == "theirs":
        raise RuntimeError("the pencil broke\nin two")
    if fail == "crash":
        os._exit(3)
    return Letters(**options)


class Letters:
    """Tokens are code points. `z` is followed by the end token, 0; the letter `!` ends the process."""

    context_tokens = 64
    end_ids = frozenset({0})

    def __init__(self, slots: int = 2, step_s: float = 0.0) -> None:
        self.slots = slots
        self.facts = {"slots": slots}
        self.added: list[Key] = []
        self._step_s = step_s
        self._last: dict[Key, tuple[int, Work]] = {}

    def add(self, key: Key, work: Work) -> None:
        if not work.prompt_ids:
            raise RequestRejected("Nothing to go on from.", hint="Write a letter.")
        self.added.append(key)
        self._last[key] = (work.prompt_ids[-1], work)

    def drop(self, key: Key) -> None:
        del self._last[key]

    def step(self) -> Sequence[tuple[Key, Token]]:
        time.sleep(self._step_s)
        written = []
        for key, (last, work) in self._last.items():
            if last == ord("!"):
                os._exit(9)
            if last == ord("?"):
                raise RuntimeError("no letter comes after a question mark")
            token = 0 if last == ord("z") else last + 1
            self._last[key] = (token or ord("a"), work)
            seen = Candidate(token, -0.5, 1) if work.wants_logprobs else None
            written.append((key, Token(token, seen, (seen,) if seen else ())))
        return written

    def decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        return "".join(chr(token) if token else "<end>" if special else "" for token in token_ids)

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        return [self.decode([token], special=True) for token in token_ids]

    def held(self) -> int:
        return len(self._last)

    def pid(self) -> int:
        return os.getpid()

    def order(self) -> list[Key]:
        return self.added
