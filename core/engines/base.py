"""What the workbench asks of an engine, whichever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from core.types import (
    Completion,
    Delta,
    EngineInfo,
    EngineSpec,
    EngineStats,
    Message,
    Request,
    TokenPiece,
)

if TYPE_CHECKING:
    import numpy as np

Report = Callable[[str], None]
"""Called during a load with a short phrase for the stage that begins."""


class Engine(Protocol):
    """One loaded model.

    The coroutines run on the runtime's loop. `encode`, `decode`, `render_chat`
    and `stats` are plain calls, safe from any thread. Callers ask `info.cannot` and
    `info.cannot_params` what it can do, never which engine it is; what it can't, it refuses.
    """

    spec: EngineSpec
    info: EngineInfo
    chat_template: str | None
    """The model's own Jinja template, or None."""

    def stream(self, request: Request) -> AsyncIterator[Delta | Completion]:
        """Yield a Delta a step, then one Completion. Closing the iterator aborts the request.

        With `beam_width` there is one Delta, with the whole text, when the search has ended.
        Raises RequestRejected for this request's own fault, EngineDied when the engine is gone.
        """
        ...

    async def complete(self, request: Request) -> Completion:
        """Generate without streaming. Cancelling the task aborts the request. Raises as `stream`."""
        ...

    async def score(self, request: Request, choices: Sequence[str]) -> list[float]:
        """The natural log-probability of each choice as the answer to the request's prompt.

        The sum over the choice's tokens of log p(token | prompt, its tokens before), as the model
        gives it: no temperature, no penalty, no structure. The end of the answer counts only where
        another choice goes on ("yes", "yes, please"): so the choices exclude each other, their
        probabilities add up to 1 at most, and a full stop after "no" costs "no" nothing.
        Cancelling the task aborts it. Raises as `stream`.
        """
        ...

    async def next_logprobs(self, request: Request) -> np.ndarray:
        """The model's own distribution over the token after the prompt, before any parameter.

        Natural logarithms, float32, one for each token id (vocabulary,). Raises as `stream`.
        """
        ...

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        ...

    def pieces(self, token_ids: Sequence[int]) -> list[TokenPiece]:
        """Each token by itself: together their texts are the text, special tokens included.

        A token that holds a part of a character has U+FFFD in its place.
        """
        ...

    def render_chat(
        self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Prompt text of each chat by the model's own template, ready for the assistant's turn.

        `options` are further variables of the template, such as {"enable_thinking": false}. Raises
        TemplateError when the model has no chat template or it refuses the messages.
        """
        ...

    def stats(self) -> EngineStats:
        """The engine's counters now."""
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forget the prompts that were read, so that the next are read in full.

        False: this engine can't, or not while it answers; what it keeps stays valid.
        """
        ...

    async def check(self) -> None:
        """Return while the engine is alive; raise EngineDied when it is not."""
        ...

    async def close(self) -> None:
        """End the engine and its processes, and free its memory. Safe to call twice."""
        ...
