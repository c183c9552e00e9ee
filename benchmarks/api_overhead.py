"""What the API costs: `vllm bench serve` against `python -m core serve` and against `vllm serve`.

    .venv/bin/python benchmarks/api_overhead.py [--prompts 200] [--input 64] [--output 64] [--turns 3]

vLLM's own client sends the same random prompts, all at once, to both servers in turns: same model, same
engine settings, same libraries in the engine's process; loading and a warm-up are left out. Each server has
the machine for itself; with `--together` both are loaded once and take turns, for a GPU that holds both
(`--setting gpu_memory_utilization=0.45`) and whose speed changes with time. Prints output tokens/s of every
turn, and the ratio of the medians. `--model`, `--setting name=value` (of the engine, for both) and
`--concurrency` change what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vllm_command  # noqa: E402

from core import embedded, machine  # noqa: E402
from core.engines.vllm_settings import CHAT_SLOTS  # noqa: E402
from core.settings import load_settings  # noqa: E402

NAME = "measured"
SEQUENCES = 128
_PATIENCE_S = 300.0
Server = tuple[str, int, int]
"""The name of the model that it serves, its port and its process id."""


def ours(model: str, settings: dict[str, str], port: int) -> list[str]:
    asked = {**settings, "max_num_seqs": str(int(settings["max_num_seqs"]) - CHAT_SLOTS)}
    options = [word for name, value in asked.items() for word in ("--engine-arg", f"{name}={value}")]
    command = [sys.executable, "-m", "core", "serve", "--port", str(port)]
    return [*command, "--engine", "vllm", "--model", model, *options]


def theirs(model: str, settings: dict[str, str], port: int) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
    options += ["--disable-uvicorn-access-log", "--scheduling-policy", "priority"]
    return vllm_command.command("serve", model, *options, *vllm_command.options(settings))


@contextlib.contextmanager
def serving(command: list[str], port: int, folder: Path) -> Iterator[Server]:
    """Start it, and give it once it answers; end it afterwards."""
    log, variables = folder / "log", {**os.environ, "WORKBENCH_HOME": str(folder / "home")}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
    try:
        yield _ready(process, port, log), port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], port: int, log: Path) -> str:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"The server ended while it loaded:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(OSError, KeyError, IndexError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                name = json.load(answer)["data"][0]["id"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return name
        time.sleep(0.5)
    raise SystemExit(f"The server did not come up:\n{log.read_text()[-2000:]}")


def measure(port: int, name: str, model: str, asked: argparse.Namespace, folder: Path, seed: int) -> dict:
    """One run of vLLM's client, which first warms up with requests of its own."""
    command = vllm_command.command(
        "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}",
        "--model", name, "--tokenizer", model, "--dataset-name", "random", "--ignore-eos",
        "--random-input-len", str(asked.input), "--random-output-len", str(asked.output),
        "--num-prompts", str(asked.prompts), "--num-warmups", "32", "--temperature", "0", "--seed", str(seed),
        "--save-result", "--result-dir", str(folder), "--result-filename", "result.json",
    )  # fmt: skip
    if asked.concurrency:
        command += ["--max-concurrency", str(asked.concurrency)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vllm bench serve failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    result = json.loads((folder / "result.json").read_text())
    if result["completed"] != asked.prompts:
        raise SystemExit(f"{result['completed']} of {asked.prompts} requests were answered.")
    return result


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Of the process that answers HTTP, and of those of its engine: what load on the machine can't change."""
    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    own, *others = [spent.user + spent.system for spent in times]
    return own, sum(others)


def cost(
    server: Server, model: str, asked: argparse.Namespace, folder: Path, turn: int
) -> tuple[dict, list[float]]:
    """What vLLM's client measured, and the CPU seconds of the server and of its engine meanwhile."""
    name, port, pid = server
    before = cpu_seconds(pid)
    result = measure(port, name, model, asked, folder, seed=turn)  # nothing that is cached already
    return result, [after - then for after, then in zip(cpu_seconds(pid), before, strict=True)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--input", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--concurrency", type=int, help="requests at once; default: all")
    parser.add_argument("--together", action="store_true", help="both servers loaded, taking turns")
    parser.add_argument("--model", help="a folder; default: the embedded model")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    model = asked.model or str(embedded.prepare(load_settings(), print))
    settings = {"max_num_seqs": str(SEQUENCES), "max_num_batched_tokens": "2048", "max_model_len": "2048"}
    settings |= {"enable_prefix_caching": "true", "enforce_eager": "true"}
    if machine.describe().gpus == ():
        settings |= {"kv_cache_memory_bytes": str(800 << 20), "block_size": "32"}
    settings |= dict(one.split("=", 1) for one in asked.setting)
    servers = {"core serve": ours, "vllm serve": theirs}
    found: dict[str, list[dict]] = {name: [] for name in servers}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loaded: dict[str, Server] = {}
        for turn in range(asked.turns):
            # who begins changes: what warms up or slows down in time meets both
            for name in list(servers)[:: 1 if turn % 2 == 0 else -1]:
                with contextlib.ExitStack() as this_turn:
                    if name not in loaded:
                        port, own = free_port(), folder / f"{name}-{turn}"
                        own.mkdir()
                        server = serving(servers[name](model, settings, port), port, own)
                        loaded[name] = (stack if asked.together else this_turn).enter_context(server)
                    result, used = cost(loaded[name], model, asked, folder, turn)
                if not asked.together:
                    del loaded[name]
                found[name].append(result)
                print(
                    f"{name}: {result['output_throughput']:9,.1f} output tokens/s, TTFT p50 "
                    f"{result['median_ttft_ms']:,.0f} ms, TPOT p50 {result['median_tpot_ms']:.2f} ms; CPU "
                    f"of the server {used[0]:.1f} s, of its engine {used[1]:.1f} s (warm-up included)",
                    flush=True,
                )
    medians = {
        name: statistics.median(one["output_throughput"] for one in runs) for name, runs in found.items()
    }
    here = machine.describe()
    print(
        f"ratio of medians {medians['core serve'] / medians['vllm serve']:.3f} ({asked.prompts} prompts x "
        f"{asked.input} in, {asked.output} out, {asked.concurrency or 'all'} at once, {asked.turns} turns; "
        f"{json.dumps(settings)}; {here.cpu}, {here.cores} cores, {[gpu.name for gpu in here.gpus]}; "
        f"{json.dumps(dict(here.versions))}; {dt.date.today()})"
    )


if __name__ == "__main__":
    main()
