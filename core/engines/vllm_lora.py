"""LoRA adapters in a running vLLM: loaded before their first request, held while requests use them.

vLLM would load an adapter itself, inside a step, and one that it can't load there ends the engine. So
each is checked and loaded by a call of its own, and put away by us only, while nobody uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from core.adapters import checks
from core.engines.vllm_models import LocalModel
from core.engines.vllm_start import plain
from core.errors import EngineDied, ModelError, RequestRejected
from core.types import Feature, LoraAdapter, Request

_LOOK_EVERY_S = 0.5
_REFUSED_S = 5.0
"""So long an adapter that was refused is not looked at again: a batch may ask for it a million times."""
_WITHOUT = "The model was loaded without LoRA."


def obstacles(config: Any, device_kind: str) -> dict[Feature, str]:
    """Why this engine takes no adapters, as EngineInfo.cannot has it; empty when it does."""
    return {} if _room(config.lora_config, device_kind) else {"adapters": _WITHOUT}


def _room(lora: Any, device_kind: str) -> int:
    """Adapters that may be loaded at once.

    On a CPU one place stays free: rows without an adapter get what is in the last one (vLLM 0.26 to
    0.32 look it up as place -1), and places are filled from the first on.
    """
    if lora is None:
        return 0
    return lora.max_loras - 1 if device_kind == "cpu" else lora.max_cpu_loras or lora.max_loras


class VllmAdapters:
    """The adapters of one engine with vLLM's `config`, on its loop. They must fit the `model`."""

    def __init__(self, config: Any, device_kind: str, model: LocalModel) -> None:
        self._room = _room(config.lora_config, device_kind)
        self._most_rank = config.lora_config.max_lora_rank if config.lora_config else 0
        self._model = model
        self._users: Counter[int] = Counter()  # adapter -> requests that use it or wait for its load
        self._loaded: dict[int, Any] = {}  # adapter -> vLLM's LoRARequest; used last comes last
        self._waiting: dict[int, int] = {}  # ticket -> priority
        self._tickets = itertools.count()
        self._freed: set[asyncio.Event] = set()
        self._loading = asyncio.Lock()
        self._refused: dict[LoraAdapter, tuple[float, RequestRejected]] = {}

    @contextlib.asynccontextmanager
    async def held(self, request: Request, engine: Callable[[], Any]) -> AsyncIterator[Any]:
        """Give vLLM's LoRARequest for our request's adapter (None for none), which stays loaded meanwhile.

        Waits while other adapters take all the room. `engine` gives the AsyncLLM. Raises
        RequestRejected, saying what is wrong with the adapter or with this engine, or EngineDied.
        """
        adapter = request.adapter
        if adapter is None:
            yield None
            return
        if not self._room:
            raise RequestRejected(_WITHOUT, hint="Load it again with LoRA, or choose no adapter.")
        await self._enter(adapter.number, int(request.priority))
        try:
            async with self._loading:
                ready = await self._ready(adapter, engine)
            yield ready
        finally:
            self._leave(adapter.number)

    async def _enter(self, number: int, priority: int) -> None:
        """Wait for room. Nobody enters while somebody more urgent waits, so that room becomes free."""
        ticket = next(self._tickets)
        self._waiting[ticket] = priority
        freed = asyncio.Event()
        self._freed.add(freed)
        try:
            while not self._may_enter(number, priority):
                freed.clear()
                await freed.wait()
        finally:
            del self._waiting[ticket]
            self._freed.discard(freed)
            self._tell()  # those who waited for this one
        self._users[number] += 1

    def _may_enter(self, number: int, priority: int) -> bool:
        if priority > min(self._waiting.values()):
            return False
        return number in self._users or len(self._users) < self._room

    def _leave(self, number: int) -> None:
        self._users[number] -= 1
        if not self._users[number]:
            del self._users[number]
        self._tell()

    def _tell(self) -> None:
        for freed in self._freed:
            freed.set()

    async def _ready(self, adapter: LoraAdapter, engine: Callable[[], Any]) -> Any:
        """Its LoRARequest, loaded. Its user is counted: those without are put away for it."""
        request = self._loaded.pop(adapter.number, None)
        if request is None:
            when, why = self._refused.get(adapter, (0.0, None))
            if why is not None and time.monotonic() - when < _REFUSED_S:
                raise RequestRejected(why.message, hint=why.hint)
            try:
                request = await asyncio.to_thread(self._checked, adapter)
                await self._load(adapter, request, engine)
            except RequestRejected as error:
                self._refused[adapter] = (time.monotonic(), error)
                raise
        self._loaded[adapter.number] = request
        return request

    async def _load(self, adapter: LoraAdapter, request: Any, engine: Callable[[], Any]) -> None:
        while len(self._loaded) >= self._room:
            idle = next(number for number in self._loaded if number not in self._users)
            del self._loaded[idle]
            await _answered(engine(), engine().remove_lora(idle))
        try:
            await _answered(engine(), engine().add_lora(request))
        except EngineDied:
            raise
        except Exception as error:  # vLLM passes its worker's error on as this
            said = plain(str(error)).removeprefix("Call to add_lora method failed: ")
            raise RequestRejected(
                f"vLLM can't load the adapter {adapter.name}: {said}", hint="The engine goes on without it."
            ) from error

    def _checked(self, adapter: LoraAdapter) -> Any:
        """vLLM's request for an adapter that fits model and engine. Reads headers: not on the loop."""
        from vllm.lora.request import LoRARequest

        try:
            facts = checks.read_adapter(Path(adapter.folder))
            checks.check_base(facts, adapter.name, self._model.folder, self._model.name)
        except ModelError as error:
            raise RequestRejected(error.message, hint=error.hint) from error
        if facts.rank > self._most_rank:
            raise RequestRejected(
                f"The adapter {adapter.name} has rank {facts.rank}; the model was loaded for ranks up to "
                f"{self._most_rank}.",
                hint=f"Load it again with max_lora_rank {facts.rank} or more.",
            )
        # the name, too, must never mean another adapter: vLLM's prefix cache goes by it
        return LoRARequest(f"{adapter.number}-{adapter.name}", adapter.number, adapter.folder)


async def _answered(engine: Any, call: Coroutine[Any, Any, Any]) -> Any:
    """A call into vLLM's core, which never returns when the core ends meanwhile."""
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_EVERY_S)
            if engine.errored and not task.done():
                raise EngineDied("The engine's process ended while it loaded an adapter.")
        return task.result()
    finally:
        task.cancel()
