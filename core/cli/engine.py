"""Which engine and model a command asks for, and with which settings: the options that commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from core import engine_settings
from core.engines import choice
from core.models import locate
from core.runtime import Runtime
from core.saved_settings import SavedSettings
from core.types import EngineSpec


@dataclass(frozen=True, slots=True)
class EngineAsked:
    """What the command line says of the engine: False when it says nothing."""

    engine: str | None
    model: str | None
    settings: dict[str, Any]

    def __bool__(self) -> bool:
        return bool(self.engine or self.model or self.settings)

    def spec(self, runtime: Runtime, saved: SavedSettings, before: EngineSpec | None = None) -> EngineSpec:
        """What to load: what is asked for; else as `before` (a run's own), as kept for the model, as the
        environment says. Raises ParameterError for what can't be loaded here.
        """
        if before is not None and not (self.engine or self.model):
            spec = engine_settings.apply(before, self.settings)
        else:
            start = self._start(runtime)
            spec = engine_settings.apply(engine_settings.for_engine(start), self.settings)
            is_open = self.engine is None and runtime.settings.engine == "auto" and not self.settings
            spec = saved.applied(spec, engine_too=is_open)
        engine_settings.validate(spec, choice.this_machine())
        return spec

    def _start(self, runtime: Runtime) -> EngineSpec:
        spec = runtime.default_spec()
        model = self.model or spec.model
        engine = self.engine or spec.engine
        if self.engine is None and runtime.settings.engine == "auto":
            is_remote = spec.base_url or "base_url" in self.settings
            engine = "openai" if is_remote else choice.suggest(locate.file_of(model, runtime.settings))
        return replace(spec, engine=engine, model=model)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options that name an engine and its model."""

    model: Annotated[
        str | None,
        typer.Option(help="The model's name in the library, a folder, a GGUF file or a hub's id."),
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(choice.LOADERS)}. Default: the first that can run here; scripted needs no "
            "model."
        ),
    ] = None
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An engine setting, such as max_model_len=4096; repeatable. docs/settings.md lists them.",
        ),
    ] = None

    def asked(self) -> EngineAsked:
        """Raises typer.BadParameter for an engine that isn't there, ParameterError for a setting."""
        if self.engine is not None and self.engine not in choice.LOADERS:
            names = ", ".join(choice.LOADERS)
            raise typer.BadParameter(f"there is no engine {self.engine!r}; there are: {names}.")
        return EngineAsked(self.engine, self.model, engine_settings.parse_assignments(self.engine_arg or ()))
