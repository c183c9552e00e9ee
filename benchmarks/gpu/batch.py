"""A batch run end to end against LLM.generate on the same prompts.

    python benchmarks/gpu/batch.py MODEL [--rows 1000] [--input 200] [--output 128] [--repeats 3] [--slots N]

Ours: from the file to the last answer on disk (staged, planned, rendered, tokenized, generated, kept).
Theirs: LLM.generate with the rendered texts, with the numbers LLM takes by itself on this device. Each in a
process of its own with 45% of the GPU's memory, warmed up with other prompts; they take turns, as a GPU's
speed changes with time. The prefix cache is emptied before each. Prints output tokens/s of each repeat and
the ratio of the medians. `--slots 0` leaves the batch's width to the workbench.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from workbench import GREEDY, opened, say, say_conditions, texts, write_table

from core import machine
from core.types import EngineSpec

SHARE = 0.45


def ours(options: argparse.Namespace) -> Iterator[dict[str, float]]:
    params = {**GREEDY, "max_tokens": options.output}
    spec = EngineSpec(model=str(options.model), max_num_seqs=options.slots or None, max_model_len=4096,
                      gpu_memory_utilization=SHARE if machine.describe().gpus else None)  # fmt: skip
    with opened(spec) as bench, tempfile.TemporaryDirectory() as temporary:
        for repeat in itertools.count(-1):
            rows = [{"prompt": text} for text in _prompts(options, warm_up=repeat < 0)]
            table = write_table(Path(temporary) / f"{repeat}.jsonl", rows)
            bench.forget_prefixes()
            started, cpu = time.monotonic(), time.process_time()
            run = bench.start(table, "{{ prompt }}", {**params, "max_tokens": 16} if repeat < 0 else params)
            staged = time.monotonic() - started
            figures = bench.finish(run)
            seconds = time.monotonic() - started
            yield {"rate": figures["output_tokens"] / seconds, "seconds": seconds, "staged_s": staged,
                "cpu_share": (time.process_time() - cpu) / seconds, **figures}  # fmt: skip


def theirs(options: argparse.Namespace) -> Iterator[dict[str, float]]:
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(options.model), max_model_len=4096, gpu_memory_utilization=SHARE)
    template = AutoTokenizer.from_pretrained(options.model)
    try:
        for repeat in itertools.count(-1):
            chats = [[{"role": "user", "content": text}] for text in _prompts(options, warm_up=repeat < 0)]
            rendered = template.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
            llm.reset_prefix_cache()
            tokens = 16 if repeat < 0 else options.output
            params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens)
            started = time.monotonic()
            outputs = llm.generate(rendered, params, use_tqdm=False)
            seconds = time.monotonic() - started
            written = sum(len(output.outputs[0].token_ids) for output in outputs)
            yield {"rate": written / seconds, "seconds": seconds}
    finally:
        llm.llm_engine.engine_core.shutdown()


def _prompts(options: argparse.Namespace, *, warm_up: bool) -> list[str]:
    return texts(options.model, 200 if warm_up else options.rows, options.input, 9 if warm_up else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--input", type=int, default=200)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        options.slots = options.slots[0]
        _answer_turns(ours(options) if options.only == "ours" else theirs(options))
        return
    say_conditions()
    for slots in options.slots:
        with Turns(options, "theirs", slots) as generate, Turns(options, "ours", slots) as workbench:
            rates: dict[str, list[float]] = {"workbench": [], "LLM.generate": []}
            for repeat in range(options.repeats):
                both = [("workbench", workbench), ("LLM.generate", generate)]
                for name, turns in both[:: 1 if repeat % 2 else -1]:
                    figures = turns.take()
                    rates[name].append(figures["rate"])
                    say(what=name, slots=slots, repeat=repeat, **figures)
        mine, base = map(statistics.median, rates.values())
        say(what="ratio", model=options.model.name, rows=options.rows, slots=slots, workbench=mine,
            llm_generate=base, ratio=mine / base)  # fmt: skip


class Turns:
    """`ours` or `theirs` in a process of its own, which works when it is its turn."""

    def __init__(self, options: argparse.Namespace, which: str, slots: int) -> None:
        command = [sys.executable, __file__, str(options.model), "--only", which, "--slots", str(slots)]
        for name in ("rows", "input", "output"):
            command += [f"--{name}", str(getattr(options, name))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.take()  # loaded, and warm

    def take(self) -> dict[str, float]:
        self._process.stdin.write("\n")
        for line in self._process.stdout:
            if line.startswith("RES"):
                print(line, end="", flush=True)
            elif line.startswith("TURN"):
                return json.loads(line.removeprefix("TURN"))
        raise SystemExit(f"It ended with {self._process.wait()}")

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.stdin.close()
        self._process.wait()


def _answer_turns(turns: Iterator[dict[str, float]]) -> None:
    with contextlib.closing(turns):
        for _line in sys.stdin:
            print("TURN", json.dumps(next(turns)), flush=True)


if __name__ == "__main__":
    main()
