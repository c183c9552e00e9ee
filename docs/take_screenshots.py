"""Take the pictures of the pages in docs/images, in light and dark, wide and narrow.

    make run                                          # in one terminal
    .venv/bin/python docs/take_screenshots.py         # in another

It asks one question in the chat, compares three parameter sets on rows of the
example table, runs all of it, looks at the models, measures the engine, looks at
the API, all for real; --folder keeps the committed pictures as they are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Page, sync_playwright

from core.bootstrap import find_browser

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"": 1280, "-narrow": 800}
WAIT_MS = 240_000


def settle(page: Page) -> None:
    page.wait_for_timeout(1500)


def shoot(page: Page, folder: Path, name: str) -> None:
    """The page as it is, in both schemes and both widths."""
    for suffix, width in SIZES.items():
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            settle(page)
            page.screenshot(path=folder / f"{name}-{scheme}{suffix}.png")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")


def home(page: Page, folder: Path, url: str) -> None:
    page.goto(url)
    page.get_by_test_id("stSidebar").get_by_role("button", name="Unload").wait_for(timeout=WAIT_MS)
    shoot(page, folder, "home")


def chat(page: Page, folder: Path, url: str) -> None:
    page.goto(f"{url}/chat")
    ask(page, "Name three rivers of Europe, one line each.", answers=1)
    shoot(page, folder, "chat")
    page.get_by_test_id("stBottomBlockContainer").get_by_role("button", name="Settings").click()
    page.get_by_role("tab", name="Answers").click()
    page.get_by_text("Token view", exact=True).click()
    settle(page)
    page.keyboard.press("Escape")
    ask(page, "Which of them is the longest?", answers=2)
    page.locator(".token").nth(4).click()
    shoot(page, folder, "chat-tokens")


def ask(page: Page, text: str, *, answers: int) -> None:
    page.get_by_placeholder("Write a message").fill(text)
    page.keyboard.press("Enter")
    page.get_by_text("TTFT").nth(answers - 1).wait_for(timeout=WAIT_MS)
    stop = page.get_by_test_id("stBottomBlockContainer").get_by_role("button", name="Stop")
    stop.wait_for(state="detached", timeout=WAIT_MS)


def compare(page: Page, folder: Path, url: str) -> None:
    page.goto(f"{url}/compare")
    page.get_by_text("From a table", exact=True).click()
    page.get_by_role("button", name="Read a file").click()
    page.get_by_role("button", name="The example: product reviews").click()
    page.get_by_role("textbox", name="Template").wait_for(timeout=WAIT_MS)
    page.keyboard.press("Escape")
    page.get_by_text("= 24 answers").wait_for(timeout=WAIT_MS)
    page.get_by_role("button", name="Run Shortcut").click()
    page.get_by_role("gridcell").first.wait_for(timeout=WAIT_MS)
    page.locator(".matrix:not(.live)").wait_for(timeout=WAIT_MS)
    shoot(page, folder, "compare")
    for tab in ("Scores", "Microscope"):
        page.get_by_text(tab, exact=True).click()
        page.locator(".js-plotly-plot").first.wait_for(timeout=WAIT_MS)
        shoot(page, folder, f"compare-{tab.lower()}")


def batch(page: Page, folder: Path, url: str) -> None:
    page.goto(f"{url}/batch")
    page.get_by_role("button", name="Use the example table").click()
    page.get_by_text("Row 3 ·").wait_for(timeout=WAIT_MS)
    shoot(page, folder, "batch-prompt")
    page.get_by_role("button", name="Run 40 rows").click()
    page.get_by_text("Latest answers").wait_for(timeout=WAIT_MS)
    page.wait_for_timeout(4000)
    shoot(page, folder, "batch-running")
    page.get_by_text("Finished: 40 of 40 rows").wait_for(timeout=WAIT_MS)
    shoot(page, folder, "batch")
    page.goto(f"{url}/batch")
    page.get_by_text("Earlier runs").wait_for(timeout=WAIT_MS)
    shoot(page, folder, "batch-start")


def models(page: Page, folder: Path, url: str) -> None:
    page.goto(f"{url}/models")
    page.get_by_text(" here, ").wait_for(timeout=WAIT_MS)
    page.get_by_test_id("stSidebar").get_by_role("button", name="Unload").wait_for(timeout=WAIT_MS)
    shoot(page, folder, "models")
    main = page.get_by_test_id("stMain")
    section = main.get_by_role("radio", name="Load", exact=True)
    section.or_(main.get_by_role("button", name="Load", exact=True)).first.click()
    page.get_by_text("Longest context").wait_for(timeout=WAIT_MS)
    shoot(page, folder, "models-load")


def api(page: Page, folder: Path, url: str) -> None:
    page.goto(f"{url}/api")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("/v1/chat/completions").first.wait_for(timeout=WAIT_MS)
    shoot(page, folder, "api")
    page.locator(".st-key-api-status").get_by_role("button", name="Stop").click()


def benchmark(page: Page, folder: Path, url: str) -> None:
    page.goto(f"{url}/benchmark")
    page.get_by_test_id("stSidebar").get_by_role("button", name="Unload").wait_for(timeout=WAIT_MS)
    pick(page, "Serving")
    for label, value in (("Prompts", "32"), ("Tokens in", "64"), ("Tokens out", "32")):
        page.get_by_role("spinbutton", name=label, exact=True).fill(value)
        page.keyboard.press("Enter")
        settle(page)
    pick(page, "Sweep to the knee")
    shoot(page, folder, "benchmark-setup")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("4 at once").first.wait_for(timeout=WAIT_MS)
    page.wait_for_timeout(6000)
    shoot(page, folder, "benchmark-running")
    page.get_by_role("button", name="See the result").click(timeout=WAIT_MS)
    page.locator(".js-plotly-plot").nth(1).wait_for(timeout=WAIT_MS)
    page.get_by_text("Look at one of").scroll_into_view_if_needed()
    shoot(page, folder, "benchmark")
    pick(page, "Latencies")
    page.locator(".js-plotly-plot").nth(4).scroll_into_view_if_needed()
    shoot(page, folder, "benchmark-latencies")


def pick(page: Page, name: str) -> None:
    main = page.get_by_test_id("stMain")
    choice = main.get_by_role("radio", name=name, exact=True)
    choice.or_(main.get_by_role("button", name=name, exact=True)).first.click()
    settle(page)


WALKS = (home, chat, compare, batch, models, benchmark, api)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8501")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--only", choices=tuple(walk.__name__ for walk in WALKS))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        for walk in WALKS:
            if arguments.only in (None, walk.__name__):
                walk(page, arguments.folder, arguments.url)
        browser.close()


if __name__ == "__main__":
    main()
