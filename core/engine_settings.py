"""The one table of engine settings: the form, the command line, validation and docs come from it.

Names and meaning are vLLM's engine arguments, each a field of EngineSpec. What is left out is
chosen for the machine when the engine loads. Asks the machine only for what it offers: no engine
is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from core import engine_settings_rules
from core.engine_settings_rules import MADE_SMALL, check_devices, check_processor, check_together
from core.engine_settings_values import KIND_WORDS, PARSERS, Kind, size_text
from core.errors import ParameterError
from core.machine import Machine
from core.named_values import NamedValue, did_you_mean
from core.types import EngineName, EngineSpec

Group = Literal["model", "main", "memory", "speed", "parallel", "adapters", "api", "trust"]
GROUPS: Mapping[Group, str] = {
    "model": "Which model",
    "main": "Settings that matter",
    "memory": "Memory",
    "speed": "Speed",
    "parallel": "Several GPUs or machines",
    "adapters": "LoRA adapters",
    "api": "The API",
    "trust": "Trust",
}
LOCAL: tuple[EngineName, ...] = ("vllm", "transformers", "llamacpp", "scripted")
_FROM_HUBS: tuple[EngineName, ...] = ("vllm", "transformers", "llamacpp")
_SAVED_SMALL = (
    "awq", "awq_marlin", "auto_awq", "gptq", "gptq_marlin", "auto_gptq", "compressed-tensors", "modelopt",
    "modelopt_fp4", "quark", "torchao", "inc", "mxfp4", "experts_int8", "moe_wna16",
)  # fmt: skip
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(NamedValue):
    """One row of the table. `automatic`: what an empty field means. `engines` take it."""

    parsers = PARSERS
    kind_words = KIND_WORDS

    title: str
    kind: Kind
    group: Group
    automatic: str
    engines: tuple[EngineName, ...] = ("vllm",)

    def number_text(self, value: float) -> str:
        word = {"bytes": size_text, "int": "{:,}".format}.get(self.kind, "{:g}".format)
        return word(value)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="hub", title="Hub", kind="text", group="model", choices=("huggingface", "modelscope"),
        automatic="the hub that has it here, else Hugging Face", engines=_FROM_HUBS,
        help="Where a model that isn't on this machine is downloaded from.",
    ),
    Setting(
        name="revision", title="Revision", kind="text", group="model", automatic="the newest",
        engines=_FROM_HUBS, help="Branch, tag or commit of the model on its hub.",
    ),
    Setting(
        name="base_url", title="Address", kind="text", group="model", automatic="none",
        engines=("openai",), help="A server's OpenAI-compatible address, such as http://gpu-box:8000/v1.",
    ),
    Setting(
        name="max_model_len", title="Context length (tokens)", kind="int", group="main", minimum=16,
        automatic="the model's, or what fits", engines=(*LOCAL, "openai"),
        help="The most tokens of a prompt and its answer together; a shorter context needs less memory.",
    ),
    Setting(
        name="max_num_seqs", title="Requests at once", kind="int", group="main", minimum=1, maximum=16384,
        automatic="256 on a CPU; 256, 504 or 1,024 on a GPU; 8 to 32 of other engines",
        engines=(*LOCAL, "openai"),
        help="How many requests of a batch the engine works on at the same time; chats have some more.",
    ),
    Setting(
        name="dtype", title="Number format", kind="text", group="main",
        choices=("auto", "bfloat16", "float16", "float32"), automatic="the model's own",
        engines=("vllm", "transformers"),
        help="How weights and activations are kept; float32 takes twice the memory of the other two.",
    ),
    Setting(
        name="quantization", title="Quantization", kind="text", group="main",
        choices=(*MADE_SMALL, *_SAVED_SMALL), automatic="as the model was saved",
        help="Weights in fewer bits: fp8 halves the memory of bfloat16, on newer GPUs. "
        "A model that was saved quantized needs nothing here.",
    ),
    Setting(
        name="gpu_memory_utilization", title="Share of GPU memory", kind="float", group="memory",
        minimum=0, maximum=1, above=True, automatic="vLLM's 0.92",
        help="Weights, activations and KV cache together take this share of each GPU.",
    ),
    Setting(
        name="kv_cache_memory_bytes", title="KV cache (GiB)", kind="bytes", group="memory",
        minimum=1 << 20, automatic="what is left of the share; on a CPU half of the free memory at most",
        engines=("vllm", "llamacpp"),
        help="Memory for the context of all running requests: less memory, fewer or shorter ones.",
    ),
    Setting(
        name="kv_cache_dtype", title="KV cache format", kind="text", group="memory",
        choices=("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"),
        automatic="as the model's numbers",
        help="fp8 keeps twice the context in the same memory, with slightly different answers.",
    ),
    Setting(
        name="block_size", title="KV cache block (tokens)", kind="int", group="memory",
        choices=(16, 32, 64, 128, 256), automatic="32 on a CPU, vLLM's on a GPU",
        help="Tokens that are kept, and shared between prompts that begin alike, as one: small blocks share "
        "more, large ones cost less work. A CPU takes no 16.",
    ),
    Setting(
        name="enforce_eager", title="Eager (no compiling)", kind="bool", group="speed",
        automatic="yes on a CPU, no on a GPU",
        help="No torch.compile, no CUDA graphs: loads in a third of the time, answers slower on a GPU; the "
        "first try after a failed load.",
    ),
    Setting(
        name="enable_prefix_caching", title="Prefix caching", kind="bool", group="speed", automatic="yes",
        help="Prompts that begin alike are read once; off only to measure without it.",
    ),
    Setting(
        name="enable_chunked_prefill", title="Chunked prefill", kind="bool", group="speed",
        automatic="yes where the model can",
        help="Long prompts are read in pieces between answers' tokens, so that a chat waits less.",
    ),
    Setting(
        name="max_num_batched_tokens", title="Tokens a step", kind="int", group="speed", minimum=16,
        maximum=1 << 20, automatic="for the machine; 16,384 on a large GPU", engines=("vllm", "llamacpp"),
        help="The most tokens of prompts and answers in one step: more reads long prompts faster, and "
        "lets a chat wait longer.",
    ),
    Setting(
        name="cpu_threads", title="Threads on the CPU", kind="int", group="speed", minimum=1, maximum=1024,
        automatic="one for each core", engines=("vllm", "llamacpp"),
        help="Threads that compute, where there is no GPU. Two on one core get in each other's way; one less "
        "than there are leaves room for other programs.",
    ),
    Setting(
        name="speculative_config", title="Speculative decoding (JSON)", kind="json", group="speed",
        automatic="off",
        help="Guess several tokens and check them in one step. Without a second model: "
        '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}, good where answers '
        'quote their prompt; with one: {"model": FOLDER, "num_speculative_tokens": 4}. '
        "min_p and logit_bias can't be used then.",
    ),
    Setting(
        name="tensor_parallel_size", title="Tensor parallel", kind="int", group="parallel", minimum=1,
        maximum=1024, automatic="1",
        help="GPUs that share each layer of the model: for a model that is too large for one.",
    ),
    Setting(
        name="pipeline_parallel_size", title="Pipeline parallel", kind="int", group="parallel", minimum=1,
        maximum=1024, automatic="1",
        help="Groups of layers on GPUs one after the other: for a model that is too large for one machine.",
    ),
    Setting(
        name="data_parallel_size", title="Data parallel", kind="int", group="parallel", minimum=1,
        maximum=1024, automatic="1",
        help="Whole copies of the model, each with GPUs of its own: for more requests at once.",
    ),
    Setting(
        name="distributed_executor_backend", title="Started by", kind="text", group="parallel",
        choices=("mp", "ray", "uni"), automatic="mp, as many processes as it takes",
        help="ray spreads the engine over the machines of a Ray cluster; mp stays on this one.",
    ),
    Setting(
        name="enable_lora", title="Take LoRA adapters", kind="bool", group="adapters", automatic="no",
        help="Answers may come from registered adapters; on a CPU the engine is about half as fast then.",
    ),
    Setting(
        name="max_loras", title="Adapters at once", kind="int", group="adapters", minimum=1, maximum=256,
        automatic="4", help="How many different adapters one step may use.",
    ),
    Setting(
        name="max_lora_rank", title="Largest rank", kind="int", group="adapters", choices=_LORA_RANKS,
        automatic="16", help="The highest rank r of an adapter that is taken; higher needs more memory.",
    ),
    Setting(
        name="max_cpu_loras", title="Adapters kept in RAM", kind="int", group="adapters", minimum=1,
        maximum=4096, automatic="as many as at once",
        help="Adapters that wait in the machine's memory, so that they need not be read again.",
    ),
    Setting(
        name="reasoning_parser", title="Reasoning parser", kind="text", group="api", automatic="none",
        help="Of a model that thinks, the API's chats give what it thought apart from its answer. vLLM's "
        "names, such as qwen3, deepseek_r1 or granite.",
    ),
    Setting(
        name="trust_remote_code", title="Run the model's own code", kind="bool", group="trust",
        automatic="no", engines=("vllm", "transformers"),
        help="Some models bring Python files, which can do on this machine all that you can: "
        "only for makers you trust.",
    ),
)  # fmt: skip
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}
_EMPTY = EngineSpec()


def given(spec: EngineSpec) -> dict[str, Any]:
    """What `spec` sets by itself, by name: all that differs from an empty one, the engine and model aside."""
    values = {name: getattr(spec, name) for name in BY_NAME}
    return {name: value for name, value in values.items() if value != getattr(_EMPTY, name)}


def apply(spec: EngineSpec, values: Mapping[str, Any]) -> EngineSpec:
    """`spec` with `values` (or their texts) in place of its own; None empties. Raises ParameterError."""
    parsed = {}
    for name, value in values.items():
        parsed[name] = _setting(name).parse(value)
        if parsed[name] is None:
            parsed[name] = getattr(_EMPTY, name)
    return replace(spec, **parsed)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """{"dtype": "float32"} of ["dtype=float32"]. Raises ParameterError."""
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ParameterError(
                f"{assignment!r} is not of the form NAME=VALUE.", hint="max_model_len=4096, say."
            )
        setting = _setting(name.strip().replace("-", "_"))
        values[setting.name] = setting.parse(text.strip())
    return values


def as_assignments(spec: EngineSpec) -> list[str]:
    """What `parse_assignments` reads back, the model and engine aside."""
    return [f"{name}={_text(value)}" for name, value in given(spec).items()]


def for_engine(spec: EngineSpec) -> EngineSpec:
    """`spec` without what its engine doesn't take: defaults that were meant for another."""
    others = {name: None for name in given(spec) if spec.engine not in BY_NAME[name].engines}
    return apply(spec, others)


def obstacle(setting: Setting, here: Machine) -> str | None:
    """Why a setting has no use on this machine, None where it has: for forms, which grey it out."""
    if setting.name == "gpu_memory_utilization" and not here.gpus:
        return "This machine has no GPU: the KV cache is set in GiB."
    if setting.name == "cpu_threads" and here.gpus:
        return "This machine computes on its GPU, not on threads."
    if (
        setting.group == "parallel"
        and max(len(here.gpus), here.numa_nodes) < 2
        and not engine_settings_rules.has_ray()
    ):
        return "This machine has one device, and Ray isn't installed."
    return None


def validate(spec: EngineSpec, here: Machine) -> None:
    """Raise ParameterError for what can't be loaded as it is asked, before anything is ended or started."""
    for name, value in given(spec).items():
        setting = BY_NAME[name]
        setting.parse(value)
        if spec.engine not in setting.engines:
            raise ParameterError(
                f"{name} is a setting of {' and '.join(setting.engines)}; this engine is {spec.engine}.",
                hint="Leave it out, or choose another engine.",
            )
    if not spec.model.strip():
        raise ParameterError("No model is named.", hint="Choose one, or write embedded.")
    if spec.engine == "openai" and not spec.base_url:
        raise ParameterError("A remote endpoint needs an address.", hint="Set base_url to its /v1 address.")
    check_devices(spec, here)
    check_processor(spec, here)
    check_together(spec, here)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _setting(name: str) -> Setting:
    if name in BY_NAME:
        return BY_NAME[name]
    hint = did_you_mean(name, BY_NAME, f"Settings: {', '.join(BY_NAME)}.")
    raise ParameterError(f"There is no engine setting {name!r}.", hint=hint)


def as_text() -> str:
    """For a terminal."""
    width = max(map(len, BY_NAME))
    return "\n".join(
        f"{row.name:<{width}}  {row.range_text}. Empty: {row.automatic}. {row.help}" for row in SETTINGS
    )


def as_markdown() -> str:
    """The table of docs/settings.md."""
    lines = []
    for group, title in GROUPS.items():
        lines += [
            "",
            f"### {title}",
            "",
            "| name | values | empty | engines | what it does |",
            "|---|---|---|---|---|",
        ]
        for row in (setting for setting in SETTINGS if setting.group == group):
            engines = ", ".join(row.engines)
            lines.append(f"| `{row.name}` | {row.range_text} | {row.automatic} | {engines} | {row.help} |")
    return "\n".join(lines).strip()
