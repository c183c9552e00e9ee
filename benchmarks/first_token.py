"""How long a new user waits: from `make run` in a fresh clone to the first chat token, step by step.

    .venv/bin/python benchmarks/first_token.py [--device cpu] [--output first_token.json]

It clones this repository (what is committed) to a temporary folder, runs `make run`
there with a fresh workspace, reads the seconds of each step from its output, and
drives the page with a browser. pip's and the package index's caches are as they are,
so the first row of packages depends on the network: run it twice to see.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.bootstrap import find_browser  # noqa: E402

STEP = re.compile(r"(?P<label>.+) \.\.\. (?P<seconds>[\d.]+) s$")
QUESTION = "What is the capital of France?"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def follow_set_up(process: subprocess.Popen[str]) -> list[tuple[str, float]]:
    """Echo what `make run` prints until it starts the server; return its steps with their seconds."""
    steps = []
    for line in process.stdout:
        print("   ", line.rstrip(), file=sys.stderr, flush=True)
        if match := STEP.match(line.rstrip()):
            steps.append((match["label"], float(match["seconds"])))
        if line.startswith("Starting the workbench"):
            # Go on reading, or the server would stop at a full pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return steps
    raise SystemExit(f"make run ended with exit code {process.wait()}")


def wait_served(url: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise SystemExit(f"{url} was not served within {timeout_s:.0f} s")


def drive_page(url: str) -> list[tuple[str, float]]:
    """Open the page, wait for the engine, ask one question, wait for its first token."""
    from playwright.sync_api import sync_playwright

    steps = []
    start = time.monotonic()

    def done(label: str) -> None:
        nonlocal start
        steps.append((label, round(time.monotonic() - start, 2)))
        start = time.monotonic()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{url}/chat")
        box = page.get_by_test_id("stChatInputTextArea")
        box.wait_for(timeout=60_000)
        done("Page drawn, ready for typing (browser start included)")
        page.get_by_test_id("stSidebar").get_by_text("Output tokens/s").wait_for(timeout=600_000)
        done("Engine loaded (it began when the server started)")
        box.fill(QUESTION)
        box.press("Enter")
        page.wait_for_function(
            """() => {
                const turns = document.querySelectorAll('[data-testid="stChatMessageContent"]');
                const answer = turns.length > 1 ? turns[1].querySelector('[data-testid="stMarkdown"]') : null;
                return answer !== null && answer.innerText.replace('▌', '').trim().length > 0;
            }""",
            polling=20,
            timeout=120_000,
        )
        done("First token of the answer on the page")
        browser.close()
    return steps


def stop(process: subprocess.Popen[str]) -> None:
    """End it as Ctrl-C would, and make sure."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(folder: Path, device: str) -> list[tuple[str, float]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "clone")], check=True)
    steps = [("git clone", round(time.monotonic() - start, 1))]
    start = time.monotonic()
    process = subprocess.Popen(
        ["make", "run", f"PORT={port}", f"DEVICE={device}"],
        cwd=folder / "clone",
        env=os.environ | {"WORKBENCH_HOME": str(folder / "home")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        steps += follow_set_up(process)
        served = time.monotonic()
        wait_served(url)
        steps.append(("Server answers", round(time.monotonic() - served, 1)))
        steps += drive_page(url)
        steps.append(("make run to first token", round(time.monotonic() - start, 1)))
    finally:
        stop(process)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="first-token-"))
    try:
        steps = measure(folder, options.device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    conditions = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    print(f"\n{'step':<72} {'seconds':>8}")
    for label, seconds in steps:
        print(f"{label:<72} {seconds:>8.1f}")
    print(f"({conditions})")
    if options.output:
        options.output.write_text(json.dumps({"conditions": conditions, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    main()
