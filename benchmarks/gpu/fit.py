"""How far off estimates of memory are: models of public shapes, loaded with random weights by vLLM itself.

    python benchmarks/gpu/fit.py [SHAPE ...] [--seconds 540] [--memory-share 0.92]
    python benchmarks/gpu/fit.py --folder MODEL_FOLDER ...

A SHAPE is a file of tests/model_configs. vLLM makes its weights up (load_format dummy), so no disk, no
network and no tokenizer is needed. Each is loaded in a process of its own, one after the other, until the
seconds are used up. With --folder, whole models are loaded by the workbench instead, and compared as the
page does.

For each shape, in GiB and tokens: what was estimated, what vLLM's worker reports (weights, peak of
activations, memory outside of PyTorch, CUDA graphs, what is left for the KV cache), and the difference.
On a CPU the KV cache is given (512 MB), so weights, tokens and context are what can be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
from workbench import ROOT, opened, say, say_conditions

from core.engines import vllm_settings
from core.engines.vllm_worker import WeightsReport
from core.models import facts, fit, fit_compare
from core.types import EngineSpec

SHAPES = ("qwen2.5-7b", "qwen2.5-0.5b", "gemma-3-1b", "qwen3-30b-a3b", "deepseek-v2-lite", "llama-3.1-8b",
          "mistral-7b-v0.1", "phi-4", "llama-3.2-1b")  # fmt: skip
_CPU_CACHE_BYTES = 512 << 20
_CONFIGS = ROOT / "tests" / "model_configs"
_REPORTED = ("peak_activation_memory", "non_torch_memory", "cudagraph_memory_estimate",
             "available_kv_cache_memory_bytes")  # fmt: skip


class Report(WeightsReport):
    """Named as vLLM's `worker_extension_cls`: becomes a part of its worker."""

    def fit_report(self) -> dict[str, int | None]:
        found = {name: getattr(self, name, None) for name in _REPORTED}
        found["weights"] = self.workbench_weights_bytes()
        return found | {"loaded": getattr(self.model_runner, "model_memory_usage", None)}


def measure(shape: str, share: float | None) -> None:
    """Load one shape in this process, and print the estimate beside the report."""
    from core.engines.vllm_start import (
        child_environment,
        find_device,
        import_vllm,
        lasting_environment,
    )

    os.environ.update(lasting_environment())
    import_vllm()
    device = find_device()
    cpu = device.kind == "cpu"
    os.environ.update(child_environment(device, eager=cpu))
    os.environ["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parent), str(ROOT)))
    spec = EngineSpec(
        model=shape,
        gpu_memory_utilization=None if cpu else share,
        kv_cache_memory_bytes=_CPU_CACHE_BYTES if cpu else None,
    )
    known = facts.from_config(json.loads((_CONFIGS / f"{shape}.json").read_text()))
    here = fit.Device(kind="cpu" if cpu else "cuda", name=device.name, memory_bytes=device.memory_bytes)
    estimate = fit.estimate(known, here, spec)
    parts = {f"{part.name} GiB": _gib(part.size_bytes) for part in estimate.overhead}
    say(what="estimate", shape=shape, device=device.name, device_gib=_gib(device.memory_bytes),
        verdict=estimate.verdict, weights_gib=_gib(estimate.weights_bytes),
        kv_gib=_gib(estimate.kv_cache_bytes), kv_tokens=estimate.kv_cache_tokens,
        context=estimate.context_tokens, **parts)  # fmt: skip
    chosen = vllm_settings.choose(spec, fit.engine_facts(known, spec), device).arguments
    began = time.monotonic()
    reported, cache = _load(shape, chosen)
    say(what="report", shape=shape, load_s=time.monotonic() - began, **{
        f"{name} GiB": _gib(value) for name, value in reported.items() if value is not None
    }, **cache)  # fmt: skip
    differences = {"weights": (estimate.weights_bytes, reported["weights"]),
                   "kv_tokens": (estimate.kv_cache_tokens, cache["tokens"]),
                   "context": (estimate.context_tokens, cache["context"])}  # fmt: skip
    if reported.get("available_kv_cache_memory_bytes"):
        differences["kv_bytes"] = (estimate.kv_cache_bytes, reported["available_kv_cache_memory_bytes"])
    shares = {name: f"{100 * (b / a - 1):+.1f}%" for name, (a, b) in differences.items() if a and b}
    say(what="difference", shape=shape, **shares)


def _load(shape: str, chosen: dict[str, Any]) -> tuple[dict[str, int | None], dict[str, Any]]:
    """(What the worker reports, what the KV cache became)."""
    from vllm import LLM

    with tempfile.TemporaryDirectory() as temporary:
        config = json.loads((_CONFIGS / f"{shape}.json").read_text())
        config.pop("auto_map", None)
        Path(temporary, "config.json").write_text(json.dumps(config))
        engine = LLM(
            model=temporary,
            skip_tokenizer_init=True,
            load_format="dummy",
            worker_extension_cls="fit.Report",
            **chosen,
        )
    reported = engine.collective_rpc("fit_report")[0]
    config = engine.llm_engine.vllm_config
    cache = config.cache_config
    tokens = getattr(cache, "kv_cache_size_tokens", None) or cache.num_gpu_blocks * cache.block_size
    return reported, {
        "tokens": tokens,
        "blocks": cache.num_gpu_blocks,
        "block_size": cache.block_size,
        "context": config.model_config.max_model_len,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "async_scheduling": config.scheduler_config.async_scheduling,
    }


def compare_folder(folder: Path) -> None:
    """As the page does: the estimate before, the loaded engine's report after."""
    from core import machine

    spec = EngineSpec(model=str(folder))
    here = fit.device_of(machine.describe())
    if here.kind == "cpu":
        spec = EngineSpec(model=str(folder), kv_cache_memory_bytes=_CPU_CACHE_BYTES)
    estimate = fit.estimate(facts.read(folder), here, spec)
    say(what="estimate", model=folder.name, advice=estimate.advice, notes=list(estimate.notes))
    with opened(spec) as workbench:
        for difference in fit_compare.compare(estimate, workbench.engine.info):
            say(what="compared", model=folder.name, part=difference.part, unit=difference.unit,
                estimated=difference.estimated, reported=difference.reported,
                share=f"{100 * difference.share:+.1f}%")  # fmt: skip


def _gib(size_bytes: float) -> float:
    return size_bytes / (1 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--folder", type=Path, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=540, help="start no shape after so long")
    parser.add_argument("--memory-share", type=float, help="gpu_memory_utilization")
    parser.add_argument("--one", action="store_true", help="measure one shape in this process")
    options = parser.parse_args()
    if options.one:
        _measure_and_end(options.shapes[0], options.memory_share)
    began = time.monotonic()
    say_conditions()
    for folder in options.folder:
        compare_folder(folder)
    failed = 0
    for shape in () if options.folder else options.shapes:
        left = options.seconds - (time.monotonic() - began)
        if left < 30:
            say(what="not measured", shape=shape, why="no time was left")
            continue
        command = [sys.executable, __file__, shape, "--one"]
        if options.memory_share:
            command += ["--memory-share", str(options.memory_share)]
        failed += _run(command, shape, left)
    sys.exit(1 if failed else 0)


def _measure_and_end(shape: str, share: float | None) -> NoReturn:
    """vLLM's own end waits for processes that may hang: they are ended here."""
    code = 1
    try:
        measure(shape, share)
        code = 0
    except Exception:
        traceback.print_exc()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    sys.stdout.flush()
    os._exit(code)


def _run(command: list[str], shape: str, left: float) -> int:
    """One shape in a process of its own: its results as they are, its log only where it fails."""
    with tempfile.TemporaryFile("w+") as log:
        try:
            ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=left, check=False)
            code = ended.returncode
        except subprocess.TimeoutExpired:
            code = -1
        log.seek(0)
        lines = log.read().splitlines()
    print("\n".join(line for line in lines if line.startswith("RES ")), flush=True)
    if code:
        print("\n".join(lines[-25:]), flush=True)
        say(what="failed", shape=shape, code=code)
    return int(code != 0)


if __name__ == "__main__":
    main()
