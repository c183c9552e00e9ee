"""What the planner costs and saves: time, prefix hit count and hit rate in three orders.

    .venv/bin/python benchmarks/planner_speed.py [table.csv]

"file" as it stands, "sort" by the columns in their order, "plan" with rows and fields ordered. Tables:
the CSV file, when one is given; many questions on few documents; 30 columns of 30,000 rows in families
that depend on each other, beside columns that don't; 1,000,000 rows of 6 columns. Lengths are
characters; each field counts its name and the JSON around it. `cpu` is what one core worked;
`memory` the most that planning held beside the table.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.planning.planner import Table, plan_fields, prefix_hits, sort_rows


def from_csv(path: str) -> Table:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        names, *rows = csv.reader(file)
    codes, lengths = [], []
    for column in zip(*rows, strict=True):
        numbers: dict[str, int] = {}
        codes.append(np.array([numbers.setdefault(value, len(numbers)) for value in column], np.int32))
        lengths.append(np.array([len(value) for value in numbers]))
    return Table.of(codes, lengths, [len(f'"{name}": "", ') for name in names])


def documents(random: np.random.Generator, rows: int = 20_000, count: int = 1_000) -> Table:
    """id, question, title, document: the documents come in no order, and before nothing."""
    document = random.integers(0, count, rows)
    lengths = [
        np.full(rows, 6),
        random.integers(20, 120, rows),
        random.integers(10, 60, count),
        random.integers(2_000, 6_000, count),
    ]
    return Table.of([np.arange(rows), random.permutation(rows), document, document], lengths, [14] * 4)


def families(random: np.random.Generator, rows: int = 30_000) -> Table:
    """Four things (key, columns, shortest and longest text) with their columns, and eleven columns apart."""
    codes: list[np.ndarray] = []
    lengths: list[np.ndarray] = []

    def add(column: np.ndarray, shortest: int, longest: int) -> None:
        codes.append(column)
        lengths.append(random.integers(shortest, longest, int(column.max()) + 1))

    for keys, columns, shortest, longest in (
        (3_000, 6, 5, 300),
        (500, 5, 5, 60),
        (40, 4, 3, 30),
        (12_000, 4, 10, 200),
    ):
        key = (keys * random.random(rows) ** 2).astype(int)
        add(key, shortest, longest)
        for _ in range(columns - 1):
            add(random.integers(0, max(keys // 3, 2), keys)[key], shortest, longest)
    for values in (2, 3, 5, 8, 20, 100, 1_000, 5_000, 30_000):
        add(random.integers(0, values, rows), 2, 40)
    add(np.arange(rows), 50, 100)
    add(np.zeros(rows, int), 10, 20)
    return Table.of(codes, lengths, [12] * len(codes))


def million(random: np.random.Generator, rows: int = 1_000_000) -> Table:
    """A number, a thing and what it determines, and three columns apart, one of them mostly distinct."""
    thing = (50_000 * random.random(rows) ** 2).astype(int)
    codes = [np.arange(rows), thing, random.integers(0, 200, 50_000)[thing]]
    codes += [random.integers(0, values, rows) for values in (20, 1_000, 300_000)]
    lengths = [random.integers(3, 100, int(column.max()) + 1) for column in codes]
    return Table.of(codes, lengths, [8] * len(codes))


def show(name: str, table: Table) -> None:
    print(f"\n{name}: {table.rows:,} rows x {table.columns} columns")
    sort_cpu, sort_wall = -time.process_time(), -time.perf_counter()
    order = sort_rows(table)
    sort_cpu, sort_wall = sort_cpu + time.process_time(), sort_wall + time.perf_counter()
    plan_cpu, plan_wall = -time.process_time(), -time.perf_counter()
    plan = plan_fields(table)
    plan_cpu, plan_wall = plan_cpu + time.process_time(), plan_wall + time.perf_counter()
    for label, cpu, wall, hits in (
        ("file", 0.0, 0.0, plan.file_hits),
        ("sort", sort_cpu, sort_wall, prefix_hits(table, order)),
        ("plan", plan_cpu, plan_wall, plan.hits),
    ):
        print(
            f"  {label}  cpu {cpu:6.2f} s  wall {wall:6.2f} s  "
            f"hit count {hits.hit_count:17,}  hit rate {hits.hit_rate:6.1%}"
        )
    tracemalloc.start()
    plan_fields(table)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"  plan: {plan.method}; field orders {len(plan.field_orders):,}; memory {memory / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", help="a CSV file with a header, in UTF-8")
    arguments = parser.parse_args()
    if arguments.table:
        show(Path(arguments.table).name, from_csv(arguments.table))
    random = np.random.default_rng(1)
    for make in (documents, families, million):
        show(make.__name__, make(random))


if __name__ == "__main__":
    main()
