"""A batch run end to end against LLM.generate on the same prompts.

    python benchmarks/gpu/batch.py MODEL [--rows 1000] [--input 200] [--output 128] [--repeats 3] [--slots N]

Ours: from the file to the last answer on disk (staged, planned, rendered, tokenized, generated, kept).
Theirs: LLM.generate with the rendered texts, with the numbers LLM takes by itself on this device. Each in a
process of its own, warmed up with other prompts, the prefix cache emptied between repeats. Prints output
tokens/s of each repeat and the ratio of the medians. `--slots 0` leaves the batch's width to the workbench.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from workbench import GREEDY, opened, say, say_conditions, texts, write_table

from core.types import EngineSpec


def ours(options: argparse.Namespace) -> list[float]:
    params = {**GREEDY, "max_tokens": options.output}
    spec = EngineSpec(model=str(options.model), max_num_seqs=options.slots or None, max_model_len=4096)
    rates = []
    with opened(spec) as bench, tempfile.TemporaryDirectory() as temporary:
        for repeat in range(-1, options.repeats):
            rows = [{"prompt": text} for text in _prompts(options, warm_up=repeat < 0)]
            table = write_table(Path(temporary) / f"{repeat}.jsonl", rows)
            bench.forget_prefixes()
            started, cpu = time.monotonic(), time.process_time()
            run = bench.start(table, "{{ prompt }}", {**params, "max_tokens": 16} if repeat < 0 else params)
            staged = time.monotonic() - started
            figures = bench.finish(run)
            seconds = time.monotonic() - started
            if repeat < 0:
                continue
            rates.append(figures["output_tokens"] / seconds)
            say(what="workbench", repeat=repeat, seconds=seconds, staged_s=staged, rate=rates[-1],
                cpu_share=(time.process_time() - cpu) / seconds, **figures)  # fmt: skip
    return rates


def theirs(options: argparse.Namespace) -> list[float]:
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(options.model), max_model_len=4096)
    template = AutoTokenizer.from_pretrained(options.model)
    rates = []
    for repeat in range(-1, options.repeats):
        chats = [[{"role": "user", "content": text}] for text in _prompts(options, warm_up=repeat < 0)]
        rendered = template.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        llm.reset_prefix_cache()
        params = SamplingParams(
            temperature=0, ignore_eos=True, max_tokens=16 if repeat < 0 else options.output
        )
        started = time.monotonic()
        outputs = llm.generate(rendered, params, use_tqdm=False)
        seconds = time.monotonic() - started
        if repeat < 0:
            continue
        rates.append(sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)
        say(what="LLM.generate", repeat=repeat, seconds=seconds, rate=rates[-1])
    llm.llm_engine.engine_core.shutdown()
    return rates


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
        rates = ours(options) if options.only == "ours" else theirs(options)
        print("RATES", json.dumps(rates), flush=True)
        return
    say_conditions()
    base = statistics.median(_in_a_process(options, "theirs", 0))
    for slots in options.slots:
        mine = statistics.median(_in_a_process(options, "ours", slots))
        say(what="ratio", model=options.model.name, rows=options.rows, slots=slots, workbench=mine,
            llm_generate=base, ratio=mine / base)  # fmt: skip


def _in_a_process(options: argparse.Namespace, which: str, slots: int) -> list[float]:
    command = [sys.executable, __file__, str(options.model), "--only", which, "--slots", str(slots)]
    for name in ("rows", "input", "output", "repeats"):
        command += [f"--{name}", str(getattr(options, name))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        rates = None
        for line in process.stdout:
            if line.startswith("RES"):
                print(line, end="", flush=True)
            elif line.startswith("RATES"):
                rates = json.loads(line.removeprefix("RATES"))
    if rates is None:
        raise SystemExit(f"{which} ended with {process.returncode}")
    return rates


if __name__ == "__main__":
    main()
