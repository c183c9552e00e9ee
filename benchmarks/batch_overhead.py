"""What the workbench costs on top of vLLM: `python -m core batch` against `LLM.generate`.

    .venv/bin/python benchmarks/batch_overhead.py [--prompts 256] [--tokens 64] [--repeats 3]

Both answer the same rendered prompts with the same parameters and engine
settings on the same machine, in turns, each in a process of its own; loading
the engine is left out of both. Prints output tokens/s of every repeat, and the
ratio of the medians.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core import embedded, machine  # noqa: E402
from core.recipes import Recipe  # noqa: E402
from core.run_spec import PromptSpec  # noqa: E402
from core.settings import load_settings  # noqa: E402
from core.tables.types import Column  # noqa: E402
from core.types import Message  # noqa: E402

TEMPLATE = "{{ question }}"
MARK = "output tokens/s: "
TOPICS = ("rain", "bread", "a city at night", "trains", "a lost key", "tea", "the sea", "an old map")


def questions(count: int) -> list[str]:
    """Prompts without a common beginning, 20 to 80 words."""
    return [
        f"{number}. Write about {TOPICS[number % len(TOPICS)]} and the number {number * 7919 % 1000}. "
        + " ".join(f"Word {number * 31 + step}." for step in range(number % 30))
        for number in range(count)
    ]


def workbench(folder: Path, table: Path, tokens: int) -> tuple[float, Path]:
    """Output tokens/s of the command, and the run's folder."""
    command = [sys.executable, "-m", "core", "batch", str(table), "-o", str(folder / "out.jsonl")]
    command += ["--template", TEMPLATE, "--json", "--param", "temperature=0", "--param", "ignore_eos=true"]
    command += ["--param", f"max_tokens={tokens}"]
    environment = {**os.environ, "WORKBENCH_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    return summary["output_tokens_per_s"], folder / "home" / "runs" / summary["run_id"]


def baseline(table: Path, run: Path, tokens: int) -> float:
    """Output tokens/s of LLM.generate with the settings that `run` had."""
    command = [sys.executable, __file__, "--baseline", str(table), "--run", str(run), "--tokens", str(tokens)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    # vLLM's own log shares the output
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(MARK))
    return float(line.removeprefix(MARK))


def run_baseline(table: Path, run: Path, tokens: int) -> None:
    """In a process of its own: load, warm up, generate, print output tokens/s."""
    from core.engines import vllm_start

    settings = json.loads((run / "run.json").read_text())["model"]["settings"]
    settings.pop("notes", None)  # remarks for people, not an argument
    os.environ.update(vllm_start.lasting_environment())
    vllm_start.import_vllm()
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    model = str(embedded.path(load_settings()))
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    recipe = Recipe(PromptSpec(template=TEMPLATE), [Column("question", "json", "text")])
    chats = [[Message.as_dict(message) for message in recipe.ask(row).messages] for row in rows]
    texts = AutoTokenizer.from_pretrained(model).apply_chat_template(
        chats, tokenize=False, add_generation_prompt=True
    )
    os.environ.update(vllm_start.child_environment(vllm_start.find_device()))
    llm = LLM(model=model, **settings)
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    llm.generate(["Hello"], SamplingParams(max_tokens=8), use_tqdm=False)
    started = time.monotonic()
    outputs = llm.generate(texts, params, use_tqdm=False)
    seconds = time.monotonic() - started
    rate = sum(len(output.outputs[0].token_ids) for output in outputs) / seconds
    print(f"\n{MARK}{rate}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--baseline", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.baseline:
        run_baseline(arguments.baseline, arguments.run, arguments.tokens)
        return
    models = load_settings().models_dir
    embedded.prepare(load_settings(), print)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "home").mkdir()
        (folder / "home" / "models").symlink_to(models)
        table = folder / "table.jsonl"
        lines = [json.dumps({"question": text}) for text in questions(arguments.prompts)]
        table.write_text("\n".join(lines), encoding="utf-8")
        ours, theirs = [], []
        for _repeat in range(arguments.repeats):
            rate, run = workbench(folder, table, arguments.tokens)
            ours.append(rate)
            theirs.append(baseline(table, run, arguments.tokens))
            print(
                f"core batch {ours[-1]:8,.0f}   LLM.generate {theirs[-1]:8,.0f}   output tokens/s", flush=True
            )
        here = machine.describe()
        print(
            f"ratio of medians {statistics.median(ours) / statistics.median(theirs):.3f} "
            f"({arguments.prompts} prompts x {arguments.tokens} tokens, {arguments.repeats} turns; "
            f"{here.cpu}, {here.cores} cores; {json.dumps(dict(here.versions))}; {dt.date.today()})"
        )


if __name__ == "__main__":
    main()
