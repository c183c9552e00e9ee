"""The workbench as a user starts it, in a process and a workspace of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def served(home, **settings):
    """Give the address of an app on the workspace `home`.

    `settings` are WORKBENCH_ variables, in small letters. It ends by Ctrl-C, and must leave
    no process behind and no traceback in its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {f"WORKBENCH_{name.upper()}": str(value) for name, value in settings.items()}
    log = (home / "app.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "Home.py", f"--server.port={port}"],
        cwd=ROOT,
        env={**os.environ, "WORKBENCH_HOME": str(home), **variables},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_served(f"{address}/_stcore/health", process)
        yield address
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(90)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, f"left behind: {alive}"
    finally:
        process.kill()
        process.wait(10)
        log.close()
    assert "Traceback" not in (home / "app.log").read_text()


def settle(page: Page):
    """Wait until the page has taken in what was done on it.

    While it draws anew, what is typed or chosen may be lost, and its sign that it does so shows late.
    """
    page.wait_for_timeout(200)  # what was done is on its way
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)


def unfold(page: Page, title):
    """Open an expander, and wait until it has: a click on what still moves is lost."""
    settle(page)
    page.get_by_text(title).click()
    page.wait_for_timeout(500)
    settle(page)


def choose(page: Page, field, option):
    """Pick from a list with a search field, by its text."""
    settle(page)
    page.get_by_role("combobox", name=field).fill(option)
    page.get_by_role("option", name=option, exact=True).click()
    settle(page)


def _wait_until_served(address, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the app ended while it started"
        try:
            with urllib.request.urlopen(address, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the app did not come up")


@contextlib.contextmanager
def watched(browser: Browser, address: str, path: str) -> Iterator[Page]:
    """A page of the workbench. What it asks of other servers, and its errors, fail the test."""
    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: address in request.url or problems.append(request.url))
    page.goto(path)
    yield page
    context.close()
    assert not [problem for problem in problems if not problem.startswith(("data:", "blob:", "ws"))]
