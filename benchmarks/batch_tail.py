"""How long the engine's batch runs half empty at a run's end, and what the plan does about it.

    .venv/bin/python benchmarks/batch_tail.py [--rows 240] [--slots 32] [--repeats 2]

Rows with answers of 4 to 160 tokens, by a column that gives max_tokens (with ignore_eos), without shared
prefixes, on the embedded model: in the file's order (--no-reorder), and planned, where the last rows begin
with those that take longest. In turns, in processes of their own; loading is left out. The tail is the
time with under half of the slots busy once no row is left to start.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core import machine  # noqa: E402
from core.settings import load_settings  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    chance = random.Random(11)
    print(f"{dt.date.today()}, {machine.describe().cores} cores, {options.rows} rows, {options.slots} slots")
    home = load_settings().home
    tails: dict[str, list[tuple[float, float]]] = {"--no-reorder": [], "--reorder": []}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.csv"
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "most"])
            for row in range(options.rows):
                writer.writerow([f"{chance.random()}: tell me of {row}.", round(4 * 40 ** chance.random())])
        for _repeat in range(options.repeats):
            for order, found in tails.items():
                command = [
                    sys.executable,
                    "-m",
                    "core",
                    "batch",
                    str(table),
                    "-o",
                    f"{folder}/out.csv",
                    order,
                ]
                command += ["--template", "{{ question }}", "--param-column", "max_tokens=most", "--json"]
                command += ["--param", "ignore_eos=true", "--param", "temperature=0"]
                environment = {**os.environ, "WORKBENCH_MAX_NUM_SEQS": str(options.slots)}
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
                )
                summary = json.loads(done.stdout.splitlines()[-1])
                spec = json.loads(
                    (home / "runs" / summary["run_id"] / "run.json").read_text(encoding="utf-8")
                )
                session = spec["sessions"][-1]
                found.append((session["tail_s"], session["wall_s"]))
                print(
                    f"{order:<13} wall {session['wall_s']:6.2f} s, tail {session['tail_s']:5.2f} s",
                    flush=True,
                )
    for order, found in tails.items():
        tail, wall = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{order:<13} median wall {wall:.2f} s, tail {tail:.2f} s, {tail / wall:.0%} of it")


if __name__ == "__main__":
    main()
