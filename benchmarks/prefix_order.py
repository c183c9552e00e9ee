"""What the order of rows and fields is worth: file order against planned order, on the real engine.

    .venv/bin/python benchmarks/prefix_order.py [--table movies.csv] [--rows 300] [--kv-mb 200] [--repeats 1]

Three tables with the embedded model on the CPU, KV cache limited so that it can't hold the whole table:
"documents" (8 shuffled questions to each of 40 documents of about 600 tokens, a template), "dependent"
(30 columns, many of which follow from others, in fields mode), and a CSV of one's own in fields mode with
all its columns. Each is run by `python -m core batch` with --no-reorder and without, in turns, in
processes of their own; loading the engine is left out. Prints the prefix hit rate computed before the run
(share of prompt characters), the one the engine reports (share of prompt tokens), wall time and ratio.
For fields mode also the paper's measures (Liu et al., MLSys 2025): prefix hit count (sum of squared
lengths of the leading cells shared with the row before) and hit rate, in file order, sorted, and planned.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core import machine  # noqa: E402
from core.planning import plans  # noqa: E402

WORDS = (
    "time", "people", "water", "day", "part", "sound", "work", "place", "year", "thing", "name", "line",
    "city", "river", "market", "letter", "winter", "garden", "engine", "paper", "window", "doctor", "forest",
    "island",
)  # fmt: skip
INSTRUCTION = "Answer in a few words: what is this row about?"


def documents(path: Path, rows: int) -> list[str]:
    """Eight questions to each document, shuffled; the arguments that ask them."""
    chance = random.Random(3)
    texts = [f"Document {n}. " + " ".join(chance.choices(WORDS, k=560)) for n in range(max(1, rows // 8))]
    table = [
        (f"Question {number}: what does it say of the {WORDS[number % 24]}?", text)
        for text in texts
        for number in range(8)
    ]
    chance.shuffle(table)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "document"])
        writer.writerows(table)
    return ["--template", "{{ document }}\n\n{{ question }}"]


def dependent(path: Path, rows: int) -> list[str]:
    """A shop's orders: ids first, and columns of the product and of the customer that follow from them."""
    chance = random.Random(5)
    products = [[f"{chance.choice(WORDS)} {n} {part}" for part in range(14)] for n in range(15)]
    customers = [[f"{chance.choice(WORDS)} {n} {part}" for part in range(13)] for n in range(40)]
    header = [
        "order",
        *(f"customer_{n}" for n in range(13)),
        *(f"product_{n}" for n in range(14)),
        "day",
        "note",
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in range(rows):
            customer, product = chance.choice(customers), chance.choice(products)
            writer.writerow(
                [row, *customer, *product, f"day {row % 7}", " ".join(chance.choices(WORDS, k=4))]
            )
    return ["--fields", ",".join(header), "--instruction", INSTRUCTION]


def own_table(path: Path, rows: int, source: Path) -> list[str]:
    """The first rows of a CSV, all its columns as fields."""
    with source.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))[: rows + 1]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
    return ["--fields", ",".join(table[0]), "--instruction", INSTRUCTION]


def run(folder: Path, table: Path, asks: list[str], kv_mb: int, *, planned: bool) -> dict[str, float]:
    """One command in a process of its own; its figures."""
    home = Path(os.environ.get("WORKBENCH_HOME", "")) if "WORKBENCH_HOME" in os.environ else None
    command = [sys.executable, "-m", "core", "batch", str(table), "-o", str(folder / "out.jsonl"), *asks]
    command += ["--param", "temperature=0", "--param", "max_tokens=8", "--param", "ignore_eos=true"]
    command += ["--truncate", "right", "--json", "--no-dedupe", "--reorder" if planned else "--no-reorder"]
    environment = {**os.environ, "WORKBENCH_KV_CACHE_MEMORY_BYTES": str(kv_mb << 20),
                   "WORKBENCH_MAX_NUM_SEQS": "16", "WORKBENCH_MAX_MODEL_LEN": "2048"}  # fmt: skip
    if home is None:
        environment["WORKBENCH_HOME"] = str(folder / "home")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["errors"] == 0, summary
    run_folder = Path(environment["WORKBENCH_HOME"]) / "runs" / summary["run_id"]
    session = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))["sessions"][-1]
    with duckdb.connect(run_folder / "run.duckdb", read_only=True) as connection:
        plan = plans.info(connection)
    return {
        "wall_s": session["wall_s"],
        "plan_s": plan.seconds,
        "computed": plan.prefix_planned if planned else plan.prefix_file_order,
        "reported": session["cached_tokens"] / session["prompt_tokens"],
        "tokens": session["prompt_tokens"],
        "tail_s": session["tail_s"] or 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="a CSV of one's own")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--kv-mb", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", choices=["documents", "dependent", "own"])
    options = parser.parse_args()
    described = machine.describe()
    print(f"{dt.date.today()}, {described.cores} cores, KV cache {options.kv_mb} MB, {options.rows} rows")
    makers = {"documents": documents, "dependent": dependent}
    if options.table:
        makers["own"] = lambda path, rows: own_table(path, rows, options.table)
    for name, make in makers.items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / f"{name}.csv"
            asks = make(table, options.rows)
            walls: dict[bool, list[float]] = {False: [], True: []}
            for _repeat in range(options.repeats):
                for planned in (False, True):
                    figures = run(Path(folder), table, asks, options.kv_mb, planned=planned)
                    walls[planned].append(figures["wall_s"])
                    shown = "planned   " if planned else "file order"
                    print(
                        f"{name:<10} {shown} {figures['wall_s']:6.1f} s, prefix hits computed "
                        f"{figures['computed']:.0%}, reported {figures['reported']:.0%} of "
                        f"{figures['tokens']:,} prompt tokens, plan {figures['plan_s']:.2f} s, "
                        f"tail {figures['tail_s']:.1f} s",
                        flush=True,
                    )
            ratio = statistics.median(walls[False]) / statistics.median(walls[True])
            print(f"{name:<10} ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
