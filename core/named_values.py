"""What a row of the tables of sampling parameters and engine settings is: a value with a name. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from core.errors import ParameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedValue:
    """`minimum` and `maximum` are inclusive, unless `above` excludes the minimum; they go with kinds of
    numbers. `choices` None: any value of its kind.
    """

    parsers: ClassVar[Mapping[Any, Callable[[Any], Any]]]
    kind_words: ClassVar[Mapping[Any, str]]

    name: str
    kind: str
    help: str
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: bool = False

    def parse(self, value: Any) -> Any:
        """`value`, or its text, in its own type; None stays None. Raises ParameterError."""
        if value is None:
            return None
        try:
            parsed = self.parsers[self.kind](value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ParameterError(
                f"{self.name}={value!r} is not {self.kind_words[self.kind]}.", hint=self.help
            ) from error
        if self.choices is not None and parsed not in self.choices:
            raise ParameterError(f"{self.name}={parsed!r} is not one of {self.range_text}.", hint=self.help)
        if isinstance(parsed, int | float) and not self._is_within(parsed):
            raise ParameterError(f"{self.name}={parsed} is out of range: {self.range_text}.", hint=self.help)
        return parsed

    def _is_within(self, value: float) -> bool:
        low, high = self.minimum, self.maximum
        if low is not None and (value <= low if self.above else value < low):
            return False
        return (high is None or value <= high) and math.isfinite(value)

    @property
    def range_text(self) -> str:
        """The allowed values in words: "0 to 2", "above 0", "true or false"."""
        if self.choices is not None:
            return ", ".join(map(str, self.choices))
        if self.minimum is None:
            return self.kind_words[self.kind]
        low = self.number_text(self.minimum)
        if self.maximum is None:
            return f"above {low}" if self.above else f"{low} or more"
        high = self.number_text(self.maximum)
        return f"above {low}, up to {high}" if self.above else f"{low} to {high}"

    def number_text(self, value: float) -> str:
        return f"{value:g}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A hint for a name that isn't known: the nearest that is, or else `otherwise`."""
    near = get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else otherwise
