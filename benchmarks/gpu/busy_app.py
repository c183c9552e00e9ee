"""A batch run in the app, alone and while ten sessions look on.

    python benchmarks/gpu/busy_app.py MODEL [--rows 3000] [--input 200] [--output 128] [--sessions 10]
        [--redraw 5] [--repeats 2]

The app is started as a user starts it, `streamlit run Home.py`: one process draws the pages and holds the
engine. The button on the Batch page starts the runs, drafts of random rows, no row twice. Sessions are spread
over the pages, poll what these poll, and have the whole page drawn anew every `--redraw` seconds. Runs with
and without them take turns. Prints the rate of each by its own record, what the sessions received, and the
ratio of the medians. WORKBENCH_ variables reach the app.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
from app_sessions import Session
from workbench import GREEDY, ROOT, say, say_conditions, texts, write_table

from core.jobs import Jobs
from core.run_spec import Instructions
from core.runs import Run
from core.runtime import Runtime
from core.settings import Settings
from core.store import Store

_RUN = "batch of the run"
_PAGES = (_RUN, "", "chat", "batch", "compare", _RUN, "benchmark", "models", "api", _RUN)
_PATIENCE_S, _PRESS_PATIENCE_S = 1800, 90


@dataclass(frozen=True, slots=True)
class App:
    settings: Settings
    store: Store
    process: psutil.Process
    port: int

    def cpu_s(self) -> float:
        """Of the process that draws the pages; the engine computes in processes of its own."""
        times = self.process.cpu_times()
        return times.user + times.system

    async def until_ready(self) -> None:
        async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as group:
            visit = Session(self.port, "")
            staying = group.create_task(visit.stay())
            await visit.button("Unload")
            staying.cancel()

    async def start(self, run_id: str) -> None:
        """As a user does it: the draft's page, the button."""
        async with asyncio.timeout(_PRESS_PATIENCE_S), asyncio.TaskGroup() as group:
            visit = Session(self.port, "batch", f"run={run_id}", redraw_s=_PATIENCE_S)
            staying = group.create_task(visit.stay())
            await visit.press("Run ")
            while self.store.run(run_id).state == "draft":  # noqa: ASYNC110 - another process changes it
                await asyncio.sleep(0.01)
            staying.cancel()

    async def finish(self, run_id: str) -> dict[str, Any]:
        while (record := self.store.run(run_id)).state in ("queued", "running"):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        assert record.state == "finished" and record.ok == record.rows, record
        session = Run.open(self.settings.runs_dir, run_id).spec.sessions[-1]
        return {
            "rows": record.rows,
            "output_tokens": session.output_tokens,
            "work_s": session.wall_s,
            "rate": session.output_tokens / session.wall_s,
            "hit_rate": session.cached_tokens / session.prompt_tokens,
        }

    async def measure(
        self, run_id: str, sessions: int, redraw_s: float, *, warm_up: bool = False
    ) -> tuple[dict[str, Any], list[Session]]:
        """One run with so many sessions; its figures, and what the sessions counted.

        To warm up, they stay until every page was drawn, which takes its modules' imports.
        """
        visits = []
        for number in range(sessions):
            page = _PAGES[number % len(_PAGES)]
            where = ("batch", f"run={run_id}") if page == _RUN else (page, "")
            visits.append(Session(self.port, *where, redraw_s, redraw_s * (number + 1) / sessions))
        async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as group:
            cpu_s, own_cpu_s = self.cpu_s(), time.process_time()
            await self.start(run_id)
            tasks = [group.create_task(visit.stay()) for visit in visits]
            figures = await self.finish(run_id)
            figures["app_cpu_share"] = (self.cpu_s() - cpu_s) / figures["work_s"]
            figures["clients_cpu_share"] = (time.process_time() - own_cpu_s) / figures["work_s"]
            if warm_up:
                await asyncio.gather(*(visit.until_drawn() for visit in visits))
            for task in tasks:
                task.cancel()
        for visit in visits:
            if not visit.has_drawn():
                raise SystemExit(
                    f"/{visit.page} did not poll, or the run was too short for that: {visit.counted}"
                )
        return figures, visits


def stage(store: Store, settings: Settings, options: argparse.Namespace) -> list[str]:
    """Drafts: one to warm up with, then two for each repeat."""
    jobs = Jobs(Runtime(settings), store)
    run_ids = []
    for number in range(1 + 2 * options.repeats):
        rows = max(options.rows // 5, 1) if number == 0 else options.rows
        table = settings.home / f"{number}.jsonl"
        write_table(table, [{"prompt": text} for text in texts(options.model, rows, options.input, number)])
        params = {**GREEDY, "max_tokens": options.output}
        run = jobs.stage(table, instructions=Instructions(template="{{ prompt }}", params=params))
        run_ids.append(run.run_id)
    jobs.close()
    return run_ids


@contextlib.contextmanager
def served(settings: Settings, store: Store, model: Path) -> Iterator[App]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"WORKBENCH_MAX_MODEL_LEN": "4096", "WORKBENCH_ENGINE": "vllm", **os.environ}
    log = settings.home / "app.log"
    # what is not installed in a site-packages Streamlit takes for its own sources: wheels in a folder, say
    arguments = [f"--server.port={port}", "--global.developmentMode=false"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "Home.py", *arguments],
            cwd=ROOT,
            env={**asked, "WORKBENCH_HOME": str(settings.home), "WORKBENCH_MODEL": str(model.resolve())},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_served(f"http://127.0.0.1:{port}/_stcore/health", process)
        yield App(settings, store, psutil.Process(process.pid), port)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert "Traceback" not in log.read_text()
    except BaseException:
        print(log.read_text()[-6000:], file=sys.stderr)
        raise
    finally:
        process.kill()
        process.wait()


def _wait_until_served(address: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the app did not come up")


async def measure_all(app: App, run_ids: list[str], options: argparse.Namespace) -> None:
    started = time.monotonic()
    await app.until_ready()
    say(what="load", seconds=time.monotonic() - started, model=options.model.name,
        streamlit=importlib.metadata.version("streamlit"))  # fmt: skip
    await app.measure(run_ids[0], options.sessions, options.redraw, warm_up=True)
    rates: dict[int, list[float]] = {0: [], options.sessions: []}
    received: dict[str, Counter] = {}
    drawn_s: list[float] = []
    for number, run_id in enumerate(run_ids[1:]):
        sessions = options.sessions if number % 4 in (1, 2) else 0  # idle, busy, busy, idle
        figures, visits = await app.measure(run_id, sessions, options.redraw)
        rates[sessions].append(figures["rate"])
        say(what="batch", sessions=sessions, **figures,
            **sum((visit.counted for visit in visits), Counter()))  # fmt: skip
        for visit in visits:
            received.setdefault(visit.page or "home", Counter(sessions=0)).update(visit.counted, sessions=1)
            drawn_s += visit.redraws_s
    for page, counted in received.items():
        say(what="received", page=page, **counted)
    idle, busy = statistics.median(rates[0]), statistics.median(rates[options.sessions])
    say(what="ratio", model=options.model.name, rows=options.rows, sessions=options.sessions, idle=idle,
        busy=busy, ratio=busy / idle, p50_redraw_ms=statistics.median(drawn_s) * 1000,
        max_redraw_ms=max(drawn_s) * 1000)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--input", type=int, default=200)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--redraw", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # which ends the app, too
    say_conditions()
    with tempfile.TemporaryDirectory() as temporary:
        settings = Settings(home=Path(temporary))
        store = Store(settings.catalogue_path)
        run_ids = stage(store, settings, options)
        with served(settings, store, options.model) as app:
            asyncio.run(measure_all(app, run_ids, options))
        store.close()


if __name__ == "__main__":
    main()
