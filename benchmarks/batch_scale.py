"""How a batch run grows with its table, with the scripted engine: speed of each step, and memory.

    .venv/bin/python benchmarks/batch_scale.py [--rows 10000 100000 1000000] [--shape unique documents]

For each size, in a process of its own: a CSV of about 1 KB a row is staged, planned, run and exported;
99.9% of the rows are done first, then the run is resumed in another process and the time to its first
new row is taken. "unique": every row has a text of its own. "documents": 20 questions to each text,
shuffled, so that the planner reorders the whole table. Peak RSS is of the whole process.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core import machine  # noqa: E402
from core.jobs import Jobs  # noqa: E402
from core.planning import plans  # noqa: E402
from core.run_spec import Instructions  # noqa: E402
from core.runtime import Runtime  # noqa: E402
from core.settings import Settings  # noqa: E402
from core.store import Store  # noqa: E402

WORDS = ("time", "people", "water", "day", "part", "sound", "work", "place", "year", "thing", "name", "line")
TEMPLATE = "{{ text }}\n\n{{ question }}"


def write_table(path: Path, rows: int, shape: str) -> None:
    """About 900 characters of text and a short question a row; deterministic."""
    chance = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        file.write("id,question,text\n")
        for row in range(rows):
            document = row if shape == "unique" else chance.randrange(max(1, rows // 20))
            words = random.Random(document)
            text = f"Document {document}. " + " ".join(words.choices(WORDS, k=160))
            file.write(f"{row},What is said of {row}?,{text}\n")


def measure(home: Path, table: Path, step: str, rows: int) -> dict[str, float]:
    """One step in this process: "first" stages, runs 99.9% of the rows; "rest" resumes, runs, exports."""
    home.mkdir(exist_ok=True)
    settings = Settings(home=home, engine="scripted", autoload=False)
    for folder in (settings.runs_dir, settings.models_dir, settings.logs_dir, settings.uploads_dir):
        folder.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(settings)
    store = Store(settings.catalogue_path)
    jobs = Jobs(runtime, store)
    figures: dict[str, float] = {}
    runtime.load()
    runtime.wait_ready(30)
    if step == "first":
        began = time.monotonic()
        asked = Instructions(template=TEMPLATE, params={"temperature": 0, "max_tokens": 8})
        run = jobs.stage(table, instructions=asked)
        figures["staged_rows_per_s"] = rows / (time.monotonic() - began)
    else:
        run = jobs.open(next(settings.runs_dir.iterdir()).name)
    began = time.monotonic()
    done = jobs.progress(run.run_id).counts.done
    jobs.start(run.run_id, rows=rows - rows // 1000 if step == "first" else None)
    while (progress := jobs.progress(run.run_id)).generated == 0:
        time.sleep(0.01)
    figures["first_request_s"] = time.monotonic() - began
    progress = jobs.wait(run.run_id)
    figures["run_rows_per_s"] = (progress.counts.done - done) / (time.monotonic() - began)
    if step == "first":
        with run.connect() as connection:
            plan = plans.info(connection)
        figures["planned_rows_per_s"] = rows / plan.seconds
        figures["plan_s"] = plan.seconds
        figures["reordered"] = plan.reordered
    else:
        began = time.monotonic()
        assert run.export(home / "out.csv") == rows
        figures["exported_rows_per_s"] = rows / (time.monotonic() - began)
        counts = run.counts()
        assert (counts.ok, counts.done) == (rows, rows), counts
    jobs.close()
    runtime.close()
    store.close()
    figures["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--shape", nargs="+", default=["unique", "documents"], choices=["unique", "documents"]
    )
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        home, table, step = options.step
        print(json.dumps(measure(Path(home), Path(table), step, options.rows[0])))
        return
    described = machine.describe()
    print(f"{dt.date.today()}, {described.cores} cores, scripted engine, Python {sys.version.split()[0]}")
    for shape in options.shape:
        for rows in options.rows:
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder) / "table.csv"
                write_table(table, rows, shape)
                size_mb = table.stat().st_size / 1e6
                print(f"\n{shape}, {rows:,} rows, {size_mb:,.0f} MB", flush=True)
                for step in ("first", "rest"):
                    command = [sys.executable, __file__, "--rows", str(rows)]
                    command += ["--step", str(Path(folder) / "home"), str(table), step]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    figures = json.loads(done.stdout.splitlines()[-1])
                    name = "stage, plan, run 99.9%" if step == "first" else "resume the last 0.1%, export"
                    shown = ", ".join(f"{key} {value:,.1f}" for key, value in figures.items())
                    print(f"  {name}: {shown}", flush=True)


if __name__ == "__main__":
    main()
