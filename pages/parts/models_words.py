"""What is said of a model in a line."""

from __future__ import annotations

import datetime as dt

from core.models.library import SOURCES, LibraryModel


def facts_words(model: LibraryModel) -> list[str]:
    """Architecture, size, numbers, licence, source: what is known of them."""
    words = []
    if model.facts is not None:
        facts = model.facts
        words.append(architecture_name(facts.architecture))
        if facts.parameters:
            words.append(f"{parameters_words(facts.parameters)} parameters")
        words.append(facts.quantization or facts.dtype)
    words += [model.license or "licence unknown", SOURCES[model.source]]
    return words


def architecture_name(name: str) -> str:
    """As people say it: Llama for LlamaForCausalLM, and for the llama of a GGUF file."""
    short = name.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration") or name
    return short[:1].upper() + short[1:]


def parameters_words(number: int) -> str:
    """134515008 -> "135M", as models are named."""
    if number >= 999_500_000:
        return f"{number / 1e9:.1f}B" if number < 99.5e9 else f"{number / 1e9:.0f}B"
    return f"{number / 1e6:.0f}M" if number >= 999_500 else f"{number / 1e3:.0f}k"


def used_words(when: dt.datetime | None) -> str:
    if when is None:
        return "never"
    local, today = when.astimezone(), dt.datetime.now().astimezone()
    if local.date() == today.date():
        return "today"
    if local.date() == today.date() - dt.timedelta(days=1):
        return "yesterday"
    return f"{local:%-d %b}" if local.year == today.year else f"{local:%-d %b %Y}"
