"""What the runtime is at, and the errors that this makes of what a caller asks."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from core.engines.base import Engine
from core.errors import EngineError, EngineLoadError, EngineNotReady, EngineUnavailable, WorkbenchError
from core.types import EnginePhase, EngineSpec


@dataclass(frozen=True, slots=True)
class State:
    """What the runtime is at. `since`: on time.monotonic()."""

    phase: EnginePhase
    since: float
    stage: str = ""
    spec: EngineSpec | None = None
    engine: Engine | None = None
    error: EngineError | None = None


def load_failure(error: Exception, log: tuple[str, ...]) -> EngineError:
    """`error` as one of the two that a caller of `wait_ready` may expect."""
    if isinstance(error, EngineLoadError | EngineUnavailable):
        return error
    if isinstance(error, WorkbenchError):
        failure = EngineLoadError(error.message, hint=error.hint, log=log)
    else:
        text = str(error).strip().partition("\n")[0]
        failure = EngineLoadError(f"{type(error).__name__}: {text}", hint="The log below says more.", log=log)
    failure.__cause__ = error
    return failure


def engine_of(state: State) -> Engine:
    if state.engine is not None:
        return state.engine
    if state.error is not None:
        # A copy: one exception raised in many threads would gather all their tracebacks.
        raise copy.copy(state.error) from state.error
    raise not_ready(state)


def not_ready(state: State) -> EngineNotReady:
    match state.phase:
        case "loading" | "restarting" | "unloading":
            doing = {"loading": "loading", "restarting": "starting again", "unloading": "being unloaded"}
            stage = f" ({state.stage})" if state.stage else ""
            return EngineNotReady(f"The engine is {doing[state.phase]}{stage}.", hint="Wait a moment.")
        case "failed":
            cause = state.error.message if state.error else "unknown"
            return EngineNotReady(f"The engine could not be loaded: {cause}", hint="Load it again.")
        case _:
            return EngineNotReady("No model is loaded.", hint="Load one first.")
