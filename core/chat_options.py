"""How a conversation is asked and shown, beside its sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pydantic

from core import reasoning
from core.errors import ParameterError

MAX_ANSWERS = 16
MAX_ALTERNATIVES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a conversation is asked and shown, beside its sampling parameters.

    `style` as `core.prompt_styles`, `template_options` further variables of the chat template,
    `top_logprobs` alternatives kept with each token (None: no token view), `n` answers at once,
    `reasoning` the parser of `core.reasoning`, `adapter` the name of the LoRA adapter that answers.
    """

    style: str = "chat"
    template_options: Mapping[str, Any] = field(default_factory=dict)
    top_logprobs: int | None = None
    n: int = 1
    reasoning: str = reasoning.AUTO
    adapter: str | None = None

    def __post_init__(self) -> None:
        """Raises ParameterError."""
        check_answers(self.n)
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_ALTERNATIVES:
            hint = f"Ask for 0 to {MAX_ALTERNATIVES}."
            raise ParameterError(f"{self.top_logprobs} alternatives to each token.", hint=hint)
        if self.reasoning not in (reasoning.AUTO, reasoning.NONE, *reasoning.PARSERS):
            raise ParameterError(f"There is no reasoning parser {self.reasoning!r}.", hint="Choose another.")

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> ChatOptions:
        """From JSON; what a later version added is left out. Raises ParameterError."""
        given = {one.name: kept[one.name] for one in fields(cls) if one.name in kept}
        try:
            return _OPTIONS.validate_python(given)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise ParameterError(
                f"The chat option {first['loc'][-1]}: {first['msg']}.", hint="Correct or remove it."
            ) from error


_OPTIONS = pydantic.TypeAdapter(ChatOptions)


def check_answers(n: int) -> None:
    """Raises ParameterError for a number of answers that can't be given at once."""
    if not 1 <= n <= MAX_ANSWERS:
        raise ParameterError(f"{n} answers at once.", hint=f"Ask for 1 to {MAX_ANSWERS}.")
