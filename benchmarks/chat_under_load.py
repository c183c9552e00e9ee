"""What a batch does to chats, and chats to the batch: the workbench against first-come-first-served.

    .venv/bin/python benchmarks/chat_under_load.py [--rows 300] [--slots 64] [--repeats 3]

The batch is a run of `core.jobs`: answers of 32 to 96 tokens, so that rows end and begin at all times.
Chats of 16 tokens are sent about every second, whether the ones before are answered or not, while at most
four are open: more would be a load of their own where a step takes long. First chats alone, then the batch
without and with chats, in turns. A step of the engine is the median time between a chat's tokens during
the batch; what a chat waits is given in steps more than the median without a batch. The engine's steps
from a chat to its first token are counted as well: at best the one at work and its own.

First-come-first-served, beside it: all rows handed to vLLM at once, no priorities, no slots kept for chats.
The processor time that other programs took is printed: on a busy machine, steps differ in length so much
that only the counts mean something.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime as dt
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from core import embedded, machine
from core.engines import vllm_settings
from core.jobs import Jobs
from core.run_spec import Instructions
from core.runtime import Runtime
from core.settings import load_settings
from core.store import Store
from core.types import Completion, EngineSpec, Message, Priority, Request

PARAMS = {"temperature": 0.0, "ignore_eos": True}
CHAT_TOKENS = 16
CHAT_EVERY_S = 1.0
MOST_CHATS = 4
_numbers = itertools.count(1)


@dataclasses.dataclass(slots=True)
class Chats:
    """Seconds to each first token and between all others; the engine's steps to each first token."""

    ttfts: list[float] = dataclasses.field(default_factory=list)
    gaps: list[float] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)

    def add(self, other: Chats) -> None:
        self.ttfts += other.ttfts
        self.gaps += other.gaps
        self.steps += other.steps


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """One loaded engine and the product around it."""

    runtime: Runtime
    jobs: Jobs
    priority: Priority
    table: Path

    async def chat(self, chats: Chats) -> None:
        number = next(_numbers)
        text = f"{number * 7919}. Explain in one sentence why the number {number} is interesting, please."
        engine = self.runtime.engine
        (prompt,) = engine.render_chat([[Message("user", text)]])
        request = Request(
            id=f"chat-{number}",
            prompt=prompt,
            params={**PARAMS, "max_tokens": CHAT_TOKENS},
            priority=self.priority,
        )
        sent, times = time.monotonic(), []
        steps = engine._counters.steps
        async for item in engine.stream(request):
            if not isinstance(item, Completion):
                if not times:
                    chats.steps.append(engine._counters.steps - steps)
                times.append(item.at_s)
        chats.ttfts.append(times[0] - sent)
        chats.gaps += [later - earlier for earlier, later in itertools.pairwise(times)]

    def idle(self, count: int) -> Chats:
        chats = Chats()
        for _ in range(count):
            self.runtime.run(self.chat(chats))
        return chats

    def batch(self, with_chats: bool) -> tuple[float, Chats]:
        """Output tokens/s of one run, started from an empty prefix cache."""
        self.runtime.run(self.runtime.engine._engine.reset_prefix_cache())
        asked = Instructions(template="{{ question }}", param_columns={"max_tokens": "tokens"}, params=PARAMS)
        run = self.jobs.stage(self.table, instructions=asked)
        chats = Chats()
        self.jobs.start(run.run_id)
        if with_chats:
            self.runtime.run(self._chats_while(run.run_id, chats))
        progress = self.jobs.wait(run.run_id, 1800)
        assert progress.state == "finished" and not progress.counts.errors, progress
        session = run.spec.sessions[-1]
        return session.output_tokens / session.wall_s, chats

    async def _chats_while(self, run_id: str, chats: Chats) -> None:
        """From the batch's first answers to its last but a few: while its slots are full."""
        times = random.Random(7)
        sent: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as group:
            while (progress := self.jobs.progress(run_id)).counts.done < 0.9 * progress.rows:
                sent = [task for task in sent if not task.done()]
                if progress.generated and len(sent) < MOST_CHATS:
                    sent.append(group.create_task(self.chat(chats)))
                await asyncio.sleep(CHAT_EVERY_S * times.uniform(0.8, 1.2))


@contextlib.contextmanager
def opened(spec: EngineSpec, table: Path, *, first_come: bool, rows: int) -> Iterator[Bench]:
    """The product with its engine loaded, as it is or first-come-first-served."""
    slots = vllm_settings.CHAT_SLOTS
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(load_settings().model_copy(update={"home": Path(folder)}))
        store = Store(runtime.settings.catalogue_path)
        jobs = Jobs(runtime, store)
        try:
            if first_come:
                vllm_settings.CHAT_SLOTS = 0
            runtime.load(spec)
            engine = runtime.wait_ready(900)
            if first_come:  # equal priorities are served in the order of arrival
                engine.info = dataclasses.replace(engine.info, batch_slots=rows)
            priority = Priority.BATCH if first_come else Priority.CHAT
            yield Bench(runtime, jobs, priority, table)
        finally:
            vllm_settings.CHAT_SLOTS = slots
            jobs.close()
            runtime.close()
            store.close()


def measure(name: str, bench: Bench, repeats: int) -> None:
    bench.idle(3)  # the first ones fill caches
    bench.batch(False)
    idle = bench.idle(30)
    alone, beside, chats = [], [], Chats()
    for _ in range(repeats):
        alone.append(bench.batch(False)[0])
        rate, asked = bench.batch(True)
        beside.append(rate)
        chats.add(asked)
    report(name, idle, chats, alone, beside)


def report(name: str, idle: Chats, chats: Chats, alone: list[float], beside: list[float]) -> None:
    before, step = statistics.median(idle.ttfts), statistics.median(chats.gaps)
    median, p95 = (
        statistics.median(chats.ttfts),
        statistics.quantiles(chats.ttfts, n=20, method="inclusive")[-1],
    )
    figures: dict[str, Any] = {
        "chats": len(chats.ttfts),
        "idle_ttft_ms": before * 1000,
        "step_ms": step * 1000,
        "median_ttft_ms": median * 1000,
        "p95_ttft_ms": p95 * 1000,
        "worst_ttft_ms": max(chats.ttfts) * 1000,
        "median_steps_above_idle": (median - before) / step,
        "p95_steps_above_idle": (p95 - before) / step,
        "idle_steps_counted": statistics.median(idle.steps),
        "median_steps_counted": statistics.median(chats.steps),
        "p95_steps_counted": statistics.quantiles(chats.steps, n=20, method="inclusive")[-1],
        "batch_tokens_per_s": statistics.median(alone),
        "batch_tokens_per_s_with_chats": statistics.median(beside),
        "batch_loses_percent": 100 * (1 - statistics.median(beside) / statistics.median(alone)),
        "rates": [[round(each) for each in rates] for rates in (alone, beside)],
    }
    rounded = {key: round(each, 1) if isinstance(each, float) else each for key, each in figures.items()}
    print(name, json.dumps(rounded), flush=True)


def write_table(path: Path, rows: int) -> None:
    """Prompts of 20 to 80 words without a common beginning; answers of 32 to 96 tokens."""
    pick = random.Random(3)
    lines = []
    for number in range(rows):
        words = " ".join(f"Word {pick.randrange(10_000)}." for _ in range(pick.randrange(5, 25)))
        lines.append({"question": f"{number}. Write about {words}", "tokens": pick.randrange(32, 97)})
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def others_share(before: Any, own_before: float) -> float:
    """Share of all processor time since `before` that other programs took, 0 to 1."""
    now = psutil.cpu_times()
    busy = sum(now) - sum(before) - (now.idle - before.idle) - (now.iowait - before.iowait)
    own = own_seconds() - own_before
    return max(0.0, busy - own) / max(sum(now) - sum(before), 1e-9)


def own_seconds() -> float:
    """Processor time of this process and its children, those that have ended included."""
    times = psutil.Process().cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end just now
            each = child.cpu_times()
            own += each.user + each.system
    return own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache-mb", type=int, default=400)
    options = parser.parse_args()
    model = embedded.prepare(load_settings(), print)
    spec = EngineSpec(
        model=str(model), max_num_seqs=options.slots, kv_cache_memory_bytes=options.cache_mb << 20
    )
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.jsonl"
        write_table(table, options.rows)
        for first_come, name in ((False, "workbench"), (True, "first-come-first-served")):
            before, own = psutil.cpu_times(), own_seconds()
            with opened(spec, table, first_come=first_come, rows=options.rows) as bench:
                measure(name, bench, options.repeats)
                share = others_share(before, own)
            print(f"{name}: other programs took {share:.0%} of the processors' time", flush=True)
    here = machine.describe()
    print(
        f"{options.rows} rows, {options.slots} slots, {options.repeats} turns; {here.cpu}, "
        f"{here.cores} cores; {json.dumps(dict(here.versions))}; {dt.date.today()}"
    )


if __name__ == "__main__":
    main()
