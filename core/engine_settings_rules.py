"""What of an EngineSpec can't be loaded on a machine, or not together."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from core.errors import ParameterError
from core.machine import Machine
from core.types import EngineSpec

MADE_SMALL = ("fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "mxfp8")
"""Quantizations that are done to a model of 16 bits while it loads, by kernels for GPUs."""


def check_devices(spec: EngineSpec, here: Machine) -> None:
    tensor, pipeline = spec.tensor_parallel_size or 1, spec.pipeline_parallel_size or 1
    copies = spec.data_parallel_size or 1
    wanted, backend = tensor * pipeline * copies, spec.distributed_executor_backend
    if backend == "ray":
        if not has_ray():
            raise ParameterError("Ray isn't installed.", hint="Run `pip install ray` in this environment.")
        return  # its cluster may have more devices than this machine
    if backend == "uni" and tensor * pipeline > 1:
        raise ParameterError("uni is one process, for one device.", hint="Choose mp, or leave it empty.")
    devices = len(here.gpus) or here.numa_nodes
    if wanted > devices:
        sizes = f"tensor {tensor} x pipeline {pipeline} x data {copies}"
        have = f"{devices} GPU{'s' * (devices != 1)}" if here.gpus else "no GPU"
        if not here.gpus and devices > 1:
            have += f" and {devices} processor groups (NUMA nodes)"
        raise ParameterError(
            f"Parallel sizes {sizes} need {wanted} devices; this machine has {have}.",
            hint="Lower them, or use ray for devices of other machines.",
        )


def has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None


def check_processor(spec: EngineSpec, here: Machine) -> None:
    if here.gpus:
        if spec.cpu_threads is not None:
            raise ParameterError(
                "cpu_threads is for machines without a GPU; this one has one.", hint="Leave it empty."
            )
        return
    if spec.block_size == 16 and spec.engine == "vllm":
        raise ParameterError("block_size=16 needs a GPU.", hint="Choose 32 or more, or leave it empty.")
    if spec.cpu_threads is None:
        return
    if spec.cpu_threads > here.cores:
        raise ParameterError(
            f"cpu_threads={spec.cpu_threads}; this machine has {here.cores} processors.",
            hint=f"{here.physical_cores} is one for each core; leave it empty for that.",
        )
    if any(
        (size or 1) > 1
        for size in (spec.tensor_parallel_size, spec.pipeline_parallel_size, spec.data_parallel_size)
    ):
        raise ParameterError(
            "cpu_threads can't be set for a model that is divided over processor groups.",
            hint="Leave it empty: each gets the cores of its own group.",
        )


def check_together(spec: EngineSpec, here: Machine) -> None:
    fp8 = (spec.kv_cache_dtype or "").startswith("fp8")
    if fp8 and not here.gpus and not {"avx512f", "amx_tile"}.intersection(here.cpu_features):
        raise ParameterError(
            f"kv_cache_dtype={spec.kv_cache_dtype} needs a GPU, or a processor with AVX-512.",
            hint="Leave kv_cache_dtype empty.",
        )
    if spec.quantization in MADE_SMALL and not here.gpus:
        raise ParameterError(
            f"quantization={spec.quantization} needs a GPU.",
            hint="Leave it empty, or choose a model that was saved quantized.",
        )
    if spec.gpu_memory_utilization is not None and not here.gpus:
        raise ParameterError(
            "gpu_memory_utilization is a share of GPU memory, and this machine has no GPU.",
            hint="Set kv_cache_memory_bytes instead.",
        )
    if not spec.enable_lora:
        for name in ("max_loras", "max_lora_rank", "max_cpu_loras"):
            if getattr(spec, name) is not None:
                raise ParameterError(f"{name} is set, but enable_lora is not.", hint="Set enable_lora too.")
    elif (spec.max_cpu_loras or 256) < (spec.max_loras or 1):
        raise ParameterError(
            f"max_cpu_loras={spec.max_cpu_loras} is less than max_loras={spec.max_loras}.",
            hint="All adapters of a step are in RAM first: raise it.",
        )
    _check_speculation(spec.speculative_config)


def _check_speculation(config: Mapping[str, Any] | None) -> None:
    if config is None:
        return
    guessed = config.get("num_speculative_tokens")
    if not isinstance(guessed, int) or not 1 <= guessed <= 32:
        raise ParameterError(
            "speculative_config needs num_speculative_tokens, from 1 to 32.",
            hint='{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}, say.',
        )
    if "method" not in config and "model" not in config:
        raise ParameterError(
            "speculative_config names no method and no model.", hint='Set "method": "ngram" or a "model".'
        )
