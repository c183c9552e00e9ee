"""A chat's wait for its first token and between tokens, alone and while a batch runs.

    python benchmarks/gpu/chat.py MODEL [--rows 3000] [--input 200] [--output 128]
        [--chunks 2048 ...] [--repeats 2]

A batch runs without chats, then with somebody who sends a chat, waits for its 32 tokens, and sends the next.
`--chunks` are values of max_num_batched_tokens; 0 leaves it to the workbench. Prints p50 and p95 of TTFT
and ITL in ms, and what the batch lost, of each repeat and of all.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from workbench import GREEDY, Workbench, opened, say, say_conditions, texts, write_table

from core.types import Completion, EngineSpec, Message, Priority, Request

_numbers = itertools.count()
Samples = tuple[list[float], list[float]]


async def chat(bench: Workbench, text: str) -> tuple[float, list[float]]:
    """TTFT and the gaps between tokens, in seconds."""
    (prompt,) = bench.engine.render_chat([[Message("user", text)]])
    params = {**GREEDY, "max_tokens": 32}
    request = Request(id=f"chat-{next(_numbers)}", prompt=prompt, params=params, priority=Priority.CHAT)
    sent, times = time.monotonic(), []
    async for item in bench.engine.stream(request):
        if not isinstance(item, Completion):
            times.append(item.at_s)
    return times[0] - sent, [later - earlier for earlier, later in itertools.pairwise(times)]


def chats_while(bench: Workbench, questions: list[str], going_on: Callable[[], bool]) -> Samples:
    """TTFTs and gaps between tokens, in seconds, of chats one after the other."""
    ttfts, itls = [], []
    for text in questions:
        if not going_on():
            break
        ttft, gaps = bench.runtime.run(chat(bench, text))
        ttfts.append(ttft)
        itls += gaps
        time.sleep(0.1)
    return ttfts, itls


def percentiles(ttfts: list[float], itls: list[float]) -> dict[str, float]:
    figures: dict[str, float] = {"chats": len(ttfts)}
    for name, seconds in (("ttft", ttfts), ("itl", itls)):
        for share in (50, 95, 100):
            figures[f"p{share}_{name}_ms"] = float(np.percentile(seconds, share)) * 1000
    return figures


def batch(bench: Workbench, table: Path, params: dict, questions: list[str]) -> tuple[float, Samples]:
    """One run from an empty prefix cache, with the `questions` asked one after the other meanwhile:
    its output tokens/s, and the chats' TTFTs and gaps.
    """
    bench.forget_prefixes()
    run = bench.start(table, "{{ prompt }}", params)

    def share_done() -> float:
        progress = bench.jobs.progress(run.run_id)
        return progress.counts.done / progress.rows

    samples: Samples = ([], [])
    if questions:
        while share_done() < 0.1:
            time.sleep(0.01)
        samples = chats_while(bench, questions, lambda: share_done() < 0.97)
    done = bench.finish(run)
    return done["output_tokens"] / done["work_s"], samples


def measure(bench: Workbench, table: Path, params: dict, questions: list[str], **conditions: int) -> None:
    """The batch alone, as often with chats, and chats alone; in this order, as chats act on afterwards."""
    repeats = conditions.pop("repeats")
    alone = [batch(bench, table, params, [])[0] for _ in range(repeats)]
    say(what="batch alone", **conditions, rates=alone)
    chats_while(bench, questions[:5], lambda: True)
    shared = []
    ttfts, itls = [], []
    for _ in range(repeats):
        rate, found = batch(bench, table, params, questions[5:])
        shared.append(rate)
        ttfts += found[0]
        itls += found[1]
        say(what="batch with chats", **conditions, rate=rate, **percentiles(*found))
    say(what="idle", **conditions, **percentiles(*chats_while(bench, questions[5:30], lambda: True)))
    lost = 1 - statistics.mean(shared) / statistics.mean(alone)
    say(what="all", **conditions, **percentiles(ttfts, itls), lost=lost, ttfts_ms=[
        round(1000 * each) for each in ttfts])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--input", type=int, default=200)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--chunks", type=int, nargs="+", default=[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--slots", type=int, default=0)
    options = parser.parse_args()
    say_conditions()
    questions = texts(options.model, 600, 60, 3)
    params = {**GREEDY, "max_tokens": options.output}
    for chunk in options.chunks:
        spec = EngineSpec(model=str(options.model), max_model_len=4096, max_num_batched_tokens=chunk or None,
                          max_num_seqs=options.slots or None)  # fmt: skip
        with opened(spec) as bench, tempfile.TemporaryDirectory() as temporary:
            table = Path(temporary) / "table.jsonl"
            rows = [{"prompt": text} for text in texts(options.model, options.rows, options.input, 1)]
            write_table(table, rows[:300])
            bench.finish(bench.start(table, "{{ prompt }}", {**params, "max_tokens": 16}))
            write_table(table, rows)
            measure(bench, table, params, questions, chunk=chunk, repeats=options.repeats)


if __name__ == "__main__":
    main()
