"""The names that requests may give as their model: the loaded model, its adapters, and presets on both.

SmolLM2-135M-Instruct            the model itself
my-adapter                       a registered LoRA adapter of it
SmolLM2-135M-Instruct:careful    the preset "careful" fills in what the request leaves out
my-adapter:careful               the same with an adapter
careful                          short for the model with that preset, where nothing else has the name
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from core import sampling
from core.adapters.registry import Adapters
from core.api.body_params import filled
from core.api.openai_errors import HttpError
from core.presets import Presets
from core.runtime import Runtime
from core.store import Store
from core.types import EngineInfo, LoraAdapter

_OWNER = "vllm-workbench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a model name stands for. `model`: the loaded model's or the adapter's own name.

    `params`: the preset's, as of `core.sampling`; empty without one.
    """

    model: str
    adapter: LoraAdapter | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


class ModelNames:
    """What names mean now: models, adapters and presets come and go. From any thread."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._adapters = Adapters(runtime.settings, store)
        self._presets = Presets(store)
        self._since = int(time.time())

    def find(self, name: str | None) -> Named:
        """What `name` means; None or "" is the loaded model. All other names are looked up in the catalogue.

        Raises EngineNotReady while nothing is loaded, HttpError 404 for a name that nothing has.
        """
        info = self._runtime.engine.info
        if not name or name == info.model:
            return Named(model=info.model)
        adapters, presets = self._lora(info), self._params()
        bases: dict[str, LoraAdapter | None] = {info.model: None, **adapters}
        if name in adapters:
            return Named(model=name, adapter=adapters[name])
        for base, adapter in bases.items():
            preset = name.removeprefix(f"{base}:")
            if preset != name and preset in presets:
                return Named(model=base, adapter=adapter, params=_checked(presets[preset]))
        if name in presets:
            return Named(model=info.model, params=_checked(presets[name]))
        raise self._unknown(name, info)

    def names(self) -> tuple[str, ...]:
        """The loaded model, its adapters, and the model with each preset. Empty while nothing is loaded.

        Adapters with presets and presets alone are understood as well, and left out here for brevity.
        """
        info = self._runtime.status().info
        if info is None:
            return ()
        return (info.model, *self._lora(info), *(f"{info.model}:{preset}" for preset in self._params()))

    def listed(self) -> dict[str, Any]:
        """The body of GET /v1/models. Raises EngineNotReady while nothing is loaded."""
        info = self._runtime.engine.info
        return {"object": "list", "data": [self._entry(name, info) for name in self.names()]}

    def entry(self, name: str) -> dict[str, Any]:
        """The body of GET /v1/models/{name}. Raises as `find`."""
        self.find(name)
        return self._entry(name, self._runtime.engine.info)

    async def resolve_body(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """`body` of a request to `path` ("/v1/chat/completions") as vLLM's server shall see it.

        Its "model" becomes the model's or adapter's own name, and a preset fills in what the body leaves
        out. The same object comes back where nothing changes: then the bytes can go on as they came.
        Raises as `find`, and ParameterError for a preset that this version can't use.
        """
        name = body.get("model")
        if name is not None and not isinstance(name, str):
            raise HttpError(400, "model is not a text. Give a name of /v1/models.", param="model")
        info = self._runtime.engine.info
        if not name or name == info.model:
            return body
        named = await asyncio.to_thread(self.find, name)
        if named.model == name and not named.params:
            return body
        return {**body, **filled(path, body, named.params), "model": named.model}

    # -- the inside ------------------------------------------------------------

    def _lora(self, info: EngineInfo) -> dict[str, LoraAdapter]:
        """Adapters that can answer now, by name."""
        if "adapters" in info.cannot:
            return {}
        found = self._adapters.list(info.model)
        return {one.name: one.as_lora for one in found if one.problem is None and one.name != info.model}

    def _params(self) -> dict[str, Mapping[str, Any]]:
        return {preset.name: preset.params for preset in self._presets.list()}

    def _entry(self, name: str, info: EngineInfo) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": _OWNER,
            "root": info.model,
            "parent": None if name == info.model else info.model,
            "max_model_len": info.max_model_len,
        }

    def _unknown(self, name: str, info: EngineInfo) -> HttpError:
        if "adapters" in info.cannot and any(one.name == name for one in self._adapters.list()):
            message, hint = f"The adapter {name!r} can't answer.", info.cannot["adapters"]
        else:
            names = [*self.names(), *self._params()]
            near = get_close_matches(name, names, n=1)
            message = f"There is no model {name!r} here."
            hint = f"Did you mean {near[0]!r}?" if near else f"Loaded: {info.model!r}."
        return HttpError(404, f"{message} {hint}", code="model_not_found", param="model")


def _checked(params: Mapping[str, Any]) -> dict[str, Any]:
    return sampling.validate(params)
