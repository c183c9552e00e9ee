"""Several GPUs of one host: copies of the model (data parallel), and one model over two GPUs.

    python benchmarks/gpu/parallel.py MODEL [--data 1 2 4] [--tensor 2] [--rows 2000] [--output 128]

For each size the workbench loads the model and runs a batch end to end (as batch.py does), with `--rows`
rows for every copy, so that each has the same work. Prints output tokens/s, and the ratio to the first size
of --data. NVLink multicast is left off (NCCL_NVLS_ENABLE=0).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from workbench import GREEDY, opened, say, say_conditions, texts, write_table

from core.types import EngineSpec


def rate(options: argparse.Namespace, data: int, tensor: int) -> float:
    """Output tokens/s from the file to the last answer on disk: the median of the repeats."""
    spec = EngineSpec(
        model=str(options.model), max_model_len=4096,
        data_parallel_size=data if data > 1 else None, tensor_parallel_size=tensor if tensor > 1 else None,
    )  # fmt: skip
    params = {**GREEDY, "max_tokens": options.output}
    prompts = texts(options.model, options.rows * data, options.input, 1)
    rates = []
    with opened(spec) as bench, tempfile.TemporaryDirectory() as temporary:
        rows = [{"prompt": text} for text in prompts]
        warm = write_table(Path(temporary) / "warm.jsonl", rows[: 256 * data])
        bench.finish(bench.start(warm, "{{ prompt }}", {**params, "max_tokens": 16}))
        table = write_table(Path(temporary) / "table.jsonl", rows)
        for _ in range(options.repeats):
            bench.forget_prefixes()
            started = time.monotonic()
            done = bench.finish(bench.start(table, "{{ prompt }}", params))
            seconds = time.monotonic() - started
            rates.append(done["output_tokens"] / seconds)
            say(what="batch", data=data, tensor=tensor, seconds=seconds, rate=rates[-1], **done)
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tensor", type=int, nargs="*", default=[2])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--input", type=int, default=200)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    say_conditions()
    first = None
    for data, tensor in [*((size, 1) for size in options.data), *((1, size) for size in options.tensor)]:
        reached = rate(options, data, tensor)
        first = first or reached
        say(what="reached", data=data, tensor=tensor, rate=reached, ratio=reached / first)


if __name__ == "__main__":
    main()
