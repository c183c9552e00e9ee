"""What the API's own routes work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.runtime import Runtime
from core.settings import Settings
from core.store import Store

if TYPE_CHECKING:
    from core.jobs import Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """`jobs` makes the batch queue at its first call, which takes a while: call it in a thread.

    The request that a route answers, with its key, is `core.api.live.current()`. What is wrong with it
    is raised as `core.api.openai_errors.HttpError`, or as a WorkbenchError.
    """

    runtime: Runtime
    store: Store
    settings: Settings
    jobs: Callable[[], Jobs]
