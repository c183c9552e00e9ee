"""Whether a folder holds a LoRA adapter that can be used, and whether it fits a model.

Both are told by the headers of safetensors files; no weight is read. What comes from outside is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt")
_MOST_CONFIG_BYTES = 1 << 20
# what a saved adapter may say, and engines would silently leave out or refuse
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own",
    "modules_to_save": "whole layers beside the LoRA",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "trainable_token_indices": "trained tokens beside the LoRA",
}
# these change the model's own weights when training begins, so that the adapter fits no plain model
_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq")
_PART = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.weight)?$")
_LEFT_OUT = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")  # copies of the model's own
_PACKED = ("U8", "I8", "U32", "I32")  # quantized weights: several numbers in one

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter says of itself.

    `base` names the model it was made for ("" if it doesn't say), `rank` is the highest of its
    layers, `layers` gives of each layer it changes (inputs, outputs).
    """

    base: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    layers: Mapping[str, tuple[int, int]]


def read_adapter(folder: Path) -> AdapterFacts:
    """Raises ModelError that says what is missing, damaged or not supported."""
    config = _read_config(folder)
    _check_supported(folder, config)
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ModelError(f"{folder / CONFIG} gives the rank as r = {rank!r}.", hint="It is a whole number.")
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickle = next((name for name in _PICKLES if (folder / name).is_file()), None)
        if pickle is not None:
            raise ModelError(
                f"{folder} holds its weights as {pickle}, a format that can run code.",
                hint=f"Save the adapter again as safetensors: {WEIGHTS}.",
            )
        raise ModelError(
            f"{folder} holds no weights: {WEIGHTS} is missing.", hint="Copy it there, or download it again."
        )
    layers, ranks = _layers(folder, _shapes(weights))
    allowed = {rank, *_numbers(config.get("rank_pattern"))}
    other = next(((name, its) for name, its in ranks.items() if its not in allowed), None)
    if other is not None:
        raise ModelError(
            f"{folder} does not fit together: {CONFIG} says rank {rank}, the weights of {other[0]} have "
            f"rank {other[1]}.",
            hint="Both files must come from the same training.",
        )
    named = config.get("base_model_name_or_path")
    return AdapterFacts(
        base=named if isinstance(named, str) else "",
        rank=max(ranks.values()),
        target_modules=tuple(sorted({name.rpartition(".")[2] for name in layers})),
        size_bytes=weights.stat().st_size,
        layers=layers,
    )


def check_base(facts: AdapterFacts, adapter: str, folder: Path, base: str) -> None:
    """Raise ModelError when the adapter changes layers that the model lacks, or has in other sizes.

    `folder` is the model's; `adapter` and `base` are names for the message. Without safetensors there
    is nothing to compare with.
    """
    shapes: dict[str, tuple[str, Shape]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != WEIGHTS:
            shapes |= _shapes(path)
    if not shapes:
        return
    endings = {_ending(name): found for name, found in shapes.items()}
    for layer, (inputs, outputs) in facts.layers.items():
        found = _weight_of(layer, shapes, endings)
        if found is None and not _is_there(layer, shapes, endings):
            raise _misfit(facts, adapter, base, f"it changes {layer}, which {base} does not have")
        if found is None or found[0] in _PACKED or len(found[1]) != 2:
            continue
        if found[1] != (outputs, inputs):
            theirs = f"{found[1][1]:,} to {found[1][0]:,}"
            what = f"its {layer} maps {inputs:,} to {outputs:,} numbers, that of {base} {theirs}"
            raise _misfit(facts, adapter, base, what)


def same_model(one: str, other: str) -> bool:
    """Whether two names may mean the same model: owners and folders before it don't count, nor does case.

    >>> same_model("HuggingFaceTB/SmolLM2-135M-Instruct", "/data/smollm2-135m-instruct/")
    True
    """
    return bool(own_name(one)) and own_name(one).casefold() == own_name(other).casefold()


def own_name(name: str) -> str:
    """A model's name without owner or folders: the last part of an id or a path."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _misfit(facts: AdapterFacts, adapter: str, base: str, what: str) -> ModelError:
    made_for = f"It was made for {facts.base}." if facts.base else "It does not say what it was made for."
    return ModelError(f"The adapter {adapter} does not fit {base}: {what}.", hint=made_for)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}.", hint="Give the folder that holds the adapter.")
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no LoRA adapter: {CONFIG} is missing.",
            hint=f"Give the folder with {CONFIG} and {WEIGHTS}.",
        )
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise ValueError("it is too large")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read: {error}.", hint="Copy or download it again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no JSON object.", hint="Copy or download it again.")
    return config


def _check_supported(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{folder} holds an adapter of the kind {kind!r}.", hint="Only LoRA adapters can be used."
        )
    reasons = [title for name, title in _UNSUPPORTED.items() if config.get(name)]
    if config.get("bias") not in (None, "none"):
        reasons.append("biases of its own")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.casefold().startswith(_CHANGING_STARTS):
        reasons.append(f"a start by {start}, which changes the model itself")
    if reasons:
        raise ModelError(
            f"{folder} uses {' and '.join(dict.fromkeys(reasons))}, which engines can't add to a model.",
            hint="Merge it into its model with peft, and import that model.",
        )


def _numbers(pattern: Any) -> set[int]:
    values = pattern.values() if isinstance(pattern, dict) else ()
    return {value for value in values if isinstance(value, int)}


def _shapes(path: Path) -> dict[str, tuple[str, Shape]]:
    """(type, shape) of each tensor, from the file's header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged: {error}.", hint="Copy or download it again.") from error


def _layers(
    folder: Path, shapes: Mapping[str, tuple[str, Shape]]
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """(inputs, outputs) and the rank of each layer, by the layer's name."""
    halves: dict[str, dict[str, Shape]] = {}
    for name, (_kind, shape) in shapes.items():
        if name.endswith(_LEFT_OUT):
            continue
        part = _PART.match(name)
        if part is None or len(shape) != 2:
            raise ModelError(
                f"{folder / WEIGHTS} holds {name}, which is no part of a LoRA.",
                hint="Whole layers can't be added to a model; merge the adapter with peft.",
            )
        layer, _embedding, half = part.groups()
        halves.setdefault(layer, {})[half] = shape
    if not halves:
        raise ModelError(f"{folder / WEIGHTS} holds no LoRA weights.", hint="Download it again.")
    layers, ranks = {}, {}
    for layer, both in halves.items():
        if set(both) != {"A", "B"} or both["A"][0] != both["B"][1]:
            raise ModelError(f"In {folder / WEIGHTS}, {layer} is incomplete.", hint="Download it again.")
        layers[layer] = (both["A"][1], both["B"][0])
        ranks[layer] = both["A"][0]
    return layers, ranks


def _ending(name: str) -> str:
    """From "layers." on: libraries differ in what stands before."""
    at = name.rfind("layers.")
    return name[at:] if at >= 0 else ".".join(name.split(".")[-2:])


def _candidates(layer: str) -> Iterator[str]:
    yield f"{layer}.weight"
    if layer.rpartition(".")[2] == "lm_head":  # a model that shares it with its input has only that
        yield f"{layer.removesuffix('lm_head')}model.embed_tokens.weight"


def _weight_of(
    layer: str, shapes: Mapping[str, tuple[str, Shape]], endings: Mapping[str, tuple[str, Shape]]
) -> tuple[str, Shape] | None:
    for name in _candidates(layer):
        found = shapes.get(name) or endings.get(_ending(name))
        if found is not None:
            return found
    return None


def _is_there(layer: str, shapes: Mapping[str, Any], endings: Mapping[str, Any]) -> bool:
    """Whether the model has the layer in a form that can't be compared: quantized, fused, or experts."""
    if ".experts" in layer:
        return True
    starts = (f"{layer}.", f"{_ending(layer + '.')}")
    if any(name.startswith(starts) for name in (*shapes, *endings)):
        return True
    around = layer.rpartition(".")[0]  # q_proj of a model that keeps qkv_proj
    fused = ("qkv_proj", "gate_up_proj")
    return any(f"{_ending(f'{around}.{name}')}.weight" in endings for name in fused)
