"""The compare page in a real browser, with the scripted engine in an app process of its own."""

import json
import re
import time

import pytest
from playwright.sync_api import Page, expect
from served import served

HOSTILE = "Say <img src=x onerror=alert(1)> and ![x](http://example.com/x.png)"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The workbench with the scripted engine, 20 tokens a second; gives its address."""
    home = tmp_path_factory.mktemp("compare-browser-home")
    with served(home, engine="scripted", scripted_tokens_per_s=20) as address:
        yield address


@pytest.fixture
def page(browser, app):
    """The compare page, empty. What it asks of other servers, and its errors, fail the test."""
    context = browser.new_context(
        base_url=app, viewport={"width": 1280, "height": 900}, accept_downloads=True
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: app in request.url or problems.append(request.url))
    page.goto("/compare")
    expect(prompt_field(page)).to_be_visible()
    yield page
    context.close()
    assert not [problem for problem in problems if not problem.startswith(("data:", "blob:", "ws"))]


def prompt_field(page: Page):
    return page.get_by_role("textbox", name="Prompt", exact=True)


def cells(page: Page):
    return page.get_by_role("gridcell")


def tab(page: Page, name: str):
    page.get_by_role("radio", name=name, exact=True).or_(
        page.get_by_role("button", name=name, exact=True)
    ).first.click()


def open_spec(page: Page, prompts, sets=2, tokens=12):
    """Fill the form from a file; `tokens`: the length of every answer."""
    spec = {
        "prompts": [{"messages": [{"role": "user", "content": text}]} for text in prompts],
        "sets": [
            {"name": f"set {n}", "params": {"temperature": n / 2, "max_tokens": tokens, "ignore_eos": True}}
            for n in range(sets)
        ],
        "seeds": [1],
    }
    page.get_by_role("button", name="Open a file").click()
    page.locator("input[type=file]").first.set_input_files(
        {"name": "spec.json", "mimeType": "application/json", "buffer": json.dumps(spec).encode()}
    )
    answers = len(prompts) * sets
    expect(page.get_by_text(f"= {answers} answers")).to_be_visible()


def run(page: Page):
    page.get_by_role("button", name=re.compile("^Run")).first.click()


def run_to_the_end(page: Page, answers):
    run(page)
    expect(cells(page)).to_have_count(answers)
    expect(page.locator(".live")).to_have_count(0)


def test_a_prompt_is_typed_run_by_key_and_read_in_the_matrix(page):
    prompt_field(page).fill("Why is the sky blue?")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("= 3 answers")).to_be_visible()
    run_to_the_end(page, 3)
    expect(cells(page).first).to_contain_text("sky blue?")
    expect(page.get_by_role("columnheader", name="temperature 0 · baseline")).to_be_visible()
    assert cells(page).first.locator("mark").count() == 0
    assert cells(page).nth(1).locator("mark").count() > 0
    assert "x=" in page.url
    page.reload()
    expect(cells(page).first).to_contain_text("sky blue?")
    page.get_by_role("button", name="New", exact=True).click()
    expect(page.get_by_text("Say what is asked")).to_be_visible()
    page.get_by_role("button", name="Saved").click()
    page.get_by_role("button", name="Why is the sky blue?").click()
    expect(cells(page).first).to_be_visible()
    expect(page.get_by_placeholder("Search names")).to_have_count(0)  # the list is closed again


def tokens(cell):
    found = re.search(r"([\d,]+) tokens", cell.inner_text())
    return int(found[1].replace(",", "")) if found else 0


def test_answers_stream_without_moving_the_rows_below(page):
    open_spec(page, ["One?", "Two?", "Three?"], tokens=240)
    run(page)
    expect(cells(page)).to_have_count(6)
    expect(cells(page).first).to_contain_text(re.compile(r"\d tokens"))
    cells(page).nth(2).focus()
    began, before = tokens(cells(page).first), cells(page).nth(4).bounding_box()
    deadline = time.monotonic() + 30
    while tokens(cells(page).first) < began + 20:
        assert time.monotonic() < deadline, "the answer does not grow"
        page.wait_for_timeout(100)
    after = cells(page).nth(4).bounding_box()
    assert (before["y"], before["height"]) == (after["y"], after["height"])
    expect(cells(page).nth(2)).to_be_focused()
    page.get_by_role("button", name="Stop", exact=True).last.click()
    expect(page.get_by_text("6 stopped")).to_be_visible()
    page.get_by_role("button", name="Get the rest").click()
    expect(page.get_by_text("stopped")).to_have_count(0)
    expect(page.locator(".live")).to_have_count(0, timeout=60_000)
    expect(cells(page).nth(5)).to_contain_text("240 tokens")


def test_the_keyboard_goes_through_answers_and_prompts(page):
    open_spec(page, ["One?", "Two?", "Three?"], sets=3)
    run_to_the_end(page, 9)
    cells(page).first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # there is no fourth
    expect(cells(page).nth(5)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Prompt 2 of 3")).to_be_visible()
    expect(page.get_by_role("columnheader", name="set 2")).to_be_visible()
    expect(cells(page)).to_have_count(2)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("Prompt 3 of 3")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("Prompt 2 of 3")).to_be_visible()


def test_what_models_write_is_text_and_nothing_else(page):
    open_spec(page, [HOSTILE], tokens=20)
    run_to_the_end(page, 2)
    expect(cells(page).first).to_contain_text("<img src=x onerror=alert(1)>")
    cells(page).nth(1).click()
    page.get_by_text("Formatted", exact=True).click()
    expect(page.get_by_text("set 1").first).to_be_visible()
    assert page.locator("img[src='x'], img[src*='example.com']").count() == 0


def test_votes_are_blind_and_by_key(page):
    open_spec(page, ["One?", "Two?", "Three?"])
    run_to_the_end(page, 6)
    tab(page, "Vote")
    expect(page.get_by_text("0 of 3 pairs judged")).to_be_visible()
    assert "set 0" not in page.get_by_role("grid").inner_text()
    page.keyboard.press("1")
    expect(page.get_by_text("1 of 3 pairs judged")).to_be_visible()
    page.keyboard.press("2")
    expect(page.get_by_text("2 of 3 pairs judged")).to_be_visible()
    page.keyboard.press("3")
    expect(page.get_by_text("You have judged every pair")).to_be_visible()
    expect(page.get_by_text("What the votes show")).to_be_visible()
    page.get_by_text("Show", exact=True).click()
    expect(page.get_by_text("no difference shown").first).to_be_visible()


def test_scores_are_drawn_and_a_report_is_taken_home(page, tmp_path):
    open_spec(page, ["One?", "Two?"])
    run_to_the_end(page, 4)
    tab(page, "Scores")
    expect(page.get_by_text("no difference shown").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Report").click()
    path = tmp_path / "report.html"
    download.value.save_as(path)
    assert "set 1" in path.read_text(encoding="utf-8")


def test_a_set_goes_on_to_the_batch_page(page):
    open_spec(page, ["Is this good?"])
    run_to_the_end(page, 2)
    page.get_by_role("button", name="Use a set").click()
    page.get_by_role("button", name="Run it over a table").click()
    expect(page.get_by_text("From your comparison: set 0")).to_be_visible()
    page.get_by_role("button", name="Use the example table").click()
    expect(page.get_by_role("textbox", name="Template")).to_have_value("Is this good?")
