"""Do we measure what vLLM measures? `vllm bench throughput` against `python -m core bench throughput`.

    .venv/bin/python benchmarks/bench_parity.py [--prompts 128] [--turns 3]

Both send the same conversations (a file of ShareGPT form, made here) all at once, with the same engine
settings and libraries, in turns, each in a process of its own; load and warm-up are left out of both by
their own clocks. No prompt comes from a prefix cache. Prints tokens/s of every turn (of prompts and answers,
as vLLM counts) and the ratio of the medians. `--model` and `--setting name=value` change what is measured.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vllm_command  # noqa: E402

from core import embedded, machine  # noqa: E402
from core.settings import load_settings  # noqa: E402

WORDS = ("rain", "bread", "city", "night", "train", "key", "tea", "sea", "map", "stone", "paper", "glass")
OURS_ALONE = ("notes", "cpu_threads")
"""Among the settings in force, but no argument of vLLM's: remarks, and what goes into its environment."""


def conversations(count: int) -> list[dict[str, Any]]:
    """Prompts of 10 to 200 words and answers of 10 to 90, drawn with a fixed seed."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))

    return [
        {"conversations": [{"from": "human", "value": text(10, 200)}, {"from": "gpt", "value": text(10, 90)}]}
        for _ in range(count)
    ]


def ours(folder: Path, data: Path, prompts: int, model: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """The result of our command, which also says which engine settings were in force."""
    command = [
        sys.executable,
        "-m",
        "core",
        "bench",
        "throughput",
        *_asked(data, prompts, folder / "ours.json"),
    ]
    command += ["--engine", "vllm", "--model", model]
    command += [f"--engine-arg={name}={value}" for name, value in settings.items()]
    _run(command, {**os.environ, "WORKBENCH_HOME": str(folder / "home")})
    return json.loads((folder / "ours.json").read_text())


def theirs(folder: Path, data: Path, prompts: int, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The result of vLLM's command with those settings."""
    taken = {name: value for name, value in settings.items() if name not in OURS_ALONE}
    command = vllm_command.command("bench", "throughput", *_asked(data, prompts, folder / "theirs.json"))
    command += ["--model", model, *vllm_command.options(taken)]
    threads = settings.get("cpu_threads")
    _run(command, {**os.environ, **({vllm_command.THREADS_VARIABLE: str(threads)} if threads else {})})
    return json.loads((folder / "theirs.json").read_text())


def _asked(data: Path, prompts: int, output: Path) -> list[str]:
    return [
        "--dataset-name", "sharegpt", "--dataset-path", str(data), "--num-prompts", str(prompts),
        "--num-warmups", str(min(32, prompts)), "--seed", "0", "--output-json", str(output),
    ]  # fmt: skip


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", help="a folder; default: the embedded model")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    model = asked.model or str(embedded.prepare(load_settings(), print))
    settings = {"enable_prefix_caching": "false"} | dict(one.split("=", 1) for one in asked.setting)
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "conversations.json"
        data.write_text(json.dumps(conversations(asked.prompts)), encoding="utf-8")
        for _turn in range(asked.turns):
            mine = ours(folder, data, asked.prompts, model, settings)
            in_force = mine["workbench"]["environment"]["settings"]
            their = theirs(folder, data, asked.prompts, model, in_force)
            for name in ("num_requests", "total_num_tokens"):
                if mine[name] != their[name]:
                    raise SystemExit(f"{name} differs: {mine[name]} and {their[name]}")
            rates["ours"].append(mine["tokens_per_second"])
            rates["theirs"].append(their["tokens_per_second"])
            print(
                f"core bench {mine['tokens_per_second']:9,.1f}   vllm bench "
                f"{their['tokens_per_second']:9,.1f}   tokens/s, {mine['total_num_tokens']:,} tokens",
                flush=True,
            )
    here = machine.describe()
    print(
        f"ratio of medians {statistics.median(rates['ours']) / statistics.median(rates['theirs']):.3f} "
        f"({asked.prompts} conversations, {asked.turns} turns; {json.dumps(in_force)}; {here.cpu}, "
        f"{here.cores} cores, {[gpu.name for gpu in here.gpus]}; {json.dumps(dict(here.versions))}; "
        f"{dt.date.today()})"
    )


if __name__ == "__main__":
    main()
