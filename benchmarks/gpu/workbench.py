"""What the benchmarks on a GPU share: a workbench of its own, tables of random words, conditions."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from core.engines.base import Engine  # noqa: E402
from core.jobs import Jobs  # noqa: E402
from core.run_spec import Instructions, PlanSpec  # noqa: E402
from core.runs import Run  # noqa: E402
from core.runtime import Runtime  # noqa: E402
from core.settings import Settings  # noqa: E402
from core.store import Store  # noqa: E402
from core.types import EngineSpec  # noqa: E402

GREEDY = {"temperature": 0.0, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Workbench:
    """`folder` is its workspace and goes with it."""

    folder: Path
    runtime: Runtime
    store: Store
    jobs: Jobs
    engine: Engine

    def forget_prefixes(self) -> None:
        """Empty the prefix cache, so that repeats of a measurement start alike."""
        self.runtime.run(self.engine._engine.reset_prefix_cache())

    def start(self, table: Path, template: str, params: Mapping[str, Any], *, reorder: bool = True) -> Run:
        """Stage a file and start it; the run may still be planned when this returns."""
        instructions = Instructions(template=template, params=dict(params), plan=PlanSpec(reorder=reorder))
        run = self.jobs.stage(table, instructions=instructions)
        self.jobs.start(run.run_id)
        return run

    def finish(self, run: Run) -> dict[str, Any]:
        """Wait for its end; tokens and seconds of the work itself, and what the prefix cache gave."""
        progress = self.jobs.wait(run.run_id, 1800)
        counts = progress.counts
        assert progress.state == "finished", progress
        assert counts.errors == 0 and counts.ok == progress.rows, progress
        session = run.spec.sessions[-1]
        return {
            "rows": progress.rows,
            "output_tokens": session.output_tokens,
            "work_s": session.wall_s,
            "hit_rate": (session.cached_tokens or 0) / session.prompt_tokens,
        }


@contextlib.contextmanager
def opened(spec: EngineSpec) -> Iterator[Workbench]:
    """A workbench with the engine loaded and warm."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = Settings(home=folder)
        runtime = Runtime(settings)
        store = Store(settings.catalogue_path)
        jobs = Jobs(runtime, store)
        try:
            started = time.monotonic()
            runtime.load(spec)
            engine = runtime.wait_ready(900)
            say(what="load", seconds=time.monotonic() - started, model=engine.info.model,
                batch_slots=engine.info.batch_slots, kv_cache_tokens=engine.info.kv_cache_tokens,
                engine=engine.info.engine_version, **engine.info.settings)  # fmt: skip
            yield Workbench(folder, runtime, store, jobs, engine)
        finally:
            jobs.close()
            runtime.close()
            store.close()


def say(**figures: Any) -> None:
    """One result as a line of JSON."""
    for name, value in figures.items():
        figures[name] = round(value, 4) if isinstance(value, float) else value
    print("RES", json.dumps(figures), flush=True)


def say_conditions() -> None:
    import torch

    versions = {}
    for package in ("vllm", "torch", "transformers", "duckdb"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    say(what="conditions", date=str(dt.date.today()), device=device, **versions)


def words(model: Path) -> list[str]:
    """Words that are one token each, with the space before them."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(word[1:] for word in vocabulary if re.fullmatch(r"Ġ[a-z]{3,}", word))


def texts(model: Path, count: int, tokens: int, seed: int) -> list[str]:
    """`count` texts of about `tokens` tokens without a common beginning."""
    known, chance = words(model), random.Random(seed)
    return [" ".join(chance.choices(known, k=tokens)) for _ in range(count)]


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path
