"""Starting vLLM's processes: the environment they get, the device they find, why a start failed."""

from __future__ import annotations

import functools
import inspect
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.engines.children import OFFLINE, faster_libraries
from core.engines.cpu_threads import BIND, processors
from core.engines.engine_log import cause_in
from core.engines.vllm_models import LocalModel
from core.engines.vllm_scheduler import paced
from core.engines.vllm_settings import Choice, DeviceFacts
from core.engines.vllm_worker import WeightsReport
from core.errors import EngineError, EngineLoadError
from core.named_values import did_you_mean
from core.types import EngineSpec

_REMEDIES = (
    (
        r"out of memory|cannot allocate|not enough memory|no available memory|free memory|KV cache",
        "Load it with a smaller max_model_len or KV cache, or choose a smaller model.",
    ),
    (
        r"architectur|not supported|does not recognize|trust_remote_code",
        "This vLLM can't run this model as it is; choose another one.",
    ),
    (r"max_model_len|max_position_embeddings", "Load it with a smaller max_model_len."),
)


def import_vllm() -> None:
    """The first import takes seconds. transformers and the hub draw progress bars: not on our terminal."""
    import transformers
    import vllm.v1.engine.async_llm  # noqa: F401

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def start(spec: EngineSpec, model: LocalModel, choice: Choice, stat_logger: Callable[..., Any]) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.config import StructuredOutputsConfig
    from vllm.v1.engine.async_llm import AsyncLLM

    # Ray starts a copy's processes where our modules may not be
    elsewhere = choice.arguments.get("data_parallel_backend") == "ray"
    arguments = AsyncEngineArgs(
        model=str(model.folder),
        served_model_name=[model.name],
        dtype=spec.dtype,
        scheduling_policy="priority",
        scheduler_cls=None if elsewhere else f"{paced.__module__}.{paced.__name__}",
        enable_log_requests=False,
        max_logprobs=-1,  # the next token's whole distribution may be asked for
        # only xgrammar keeps white space out, in which a small model loses itself until max_tokens
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
        worker_extension_cls=f"{WeightsReport.__module__}.{WeightsReport.__name__}",
        **choice.arguments,
    )
    return AsyncLLM.from_engine_args(arguments, stat_loggers=[stat_logger])


def check_reasoning_parser(name: str, tokenizer: Any) -> None:
    """Raise EngineLoadError where vLLM has no such parser, or it looks for what the model doesn't write.

    `tokenizer` is that of transformers. Later it would be the engine's process that meets it, and ends.
    """
    from vllm.reasoning import ReasoningParserManager

    known = sorted(ReasoningParserManager.list_registered())
    if name not in known:
        hint = did_you_mean(name, known, f"It has: {', '.join(known)}.")
        raise EngineLoadError(f"vLLM has no reasoning parser {name!r}.", hint=hint)
    try:
        ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
    except Exception as error:  # each parser has errors of its own
        raise EngineLoadError(
            f"The reasoning parser {name!r} is not for this model: {plain(str(error))}",
            hint="Choose that of the model's family, or leave reasoning_parser empty.",
        ) from error


def structured_at_once(spec: EngineSpec) -> dict[str, bool]:
    """What `generate` is told so that an answer obeys its structure from its start, not after a thought."""
    return {"reasoning_ended": True} if spec.reasoning_parser is not None and _knows_of_thoughts() else {}


@functools.cache
def _knows_of_thoughts() -> bool:
    from vllm.v1.engine.async_llm import AsyncLLM

    return "reasoning_ended" in inspect.signature(AsyncLLM.generate).parameters


def find_device(spec: EngineSpec | None = None) -> DeviceFacts:
    """What the engine of `spec` will run on."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.utils.cpu_resource_utils import get_memory_node_info

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        name = f"CPU, {cores} cores ({_cpu_name()})"
        return DeviceFacts(
            kind="cpu",
            name=name,
            memory_bytes=get_memory_node_info(0).available_memory,
            processors=_bound(spec or EngineSpec()),
        )
    # vLLM asks the driver's library: CUDA in this process would take memory from the engine.
    return DeviceFacts(
        kind=current_platform.device_type,
        name=current_platform.get_device_name(),
        memory_bytes=current_platform.get_device_total_memory(),
    )


def _bound(spec: EngineSpec) -> tuple[int, ...]:
    """The processors of the engine's threads; empty where vLLM chooses, or the user by its variable."""
    copies = (spec.tensor_parallel_size, spec.pipeline_parallel_size, spec.data_parallel_size)
    divided = any((size or 1) > 1 for size in copies)  # vLLM gives each part a memory node
    if divided or (spec.cpu_threads is None and BIND in os.environ):
        return ()
    return processors(spec.cpu_threads)


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", path.read_text(), re.M) if path.exists() else None
    return found[1].strip() if found else platform.machine()


def lasting_environment() -> dict[str, str]:
    """Read at import or by libraries at any time: stays set. The user's own values win."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # fork from a process with threads hangs now and then
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def child_environment(device: DeviceFacts, *, eager: bool = False) -> dict[str, str]:
    """For the engine's processes: the model is in a folder by now, so they need no network."""
    variables = dict(OFFLINE)
    # A worker has nothing to save. With vLLM's 5 s of patience, one on a busy machine outlasts the
    # end of its core, which is then killed and leaks its shared memory.
    variables["VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS"] = "1"
    if device.kind == "cpu":
        # One thread and the default OpenMP: 840 tokens/s; all cores: 1,330; Intel's OpenMP too: 1,430.
        variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        if device.processors:
            variables[BIND] = ",".join(map(str, device.processors))
        if eager:
            # Else the first request for a log-probability has vLLM compile one small function, and
            # everybody waits: 14 s on a new machine, 2 s after each load. It runs as fast without.
            variables["TORCHDYNAMO_DISABLE"] = os.environ.get("TORCHDYNAMO_DISABLE", "1")
        variables |= faster_libraries()
    return variables


def explain(error: Exception, model: LocalModel, log: tuple[str, ...]) -> EngineError:
    """The load's own cause in one line, with a remedy where one is known."""
    if isinstance(error, EngineError):
        return error
    said = plain(str(error))
    cause = (cause_in(log) if "initialization failed" in said else None) or f"{type(error).__name__}: {said}"
    if re.search(r"core proc.*-9", said) and not cause_in(log):
        cause = "its process was killed, most likely as the machine ran out of memory"
    remedies = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, f"{cause} {said}", re.I))
    hint = next(remedies, "The engine's log says more.")
    return EngineLoadError(f"{model.name} could not be loaded: {cause}", hint=hint, log=log)


@dataclass(frozen=True, slots=True)
class ErrorTypes:
    """vLLM's exceptions: the engine is gone, it failed on one request, it refuses one."""

    dead: type[Exception]
    generate: type[Exception]
    rejected: tuple[type[Exception], ...]


@functools.cache
def error_types() -> ErrorTypes:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:  # 0.26
        return ErrorTypes(EngineDeadError, EngineGenerateError, (ValueError,))
    return ErrorTypes(EngineDeadError, EngineGenerateError, (ValueError, VLLMClientError))


def plain(text: str) -> str:
    """The first line with content, pydantic's preamble left out."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        return re.sub(r"^Value error, | \[type=.*$", "", lines[1])
    return lines[0] if lines else "no reason given"
