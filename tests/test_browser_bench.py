"""The benchmark page in a real browser: measured, watched by two, looked at, downloaded, imported."""

import functools
import json
import re

import pytest
from playwright.sync_api import Page, expect
from served import served, settle, unfold, watched

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The workbench over an engine that takes a few seconds for a benchmark; gives its address."""
    home = tmp_path_factory.mktemp("bench-browser-home")
    with served(home, engine="scripted", scripted_tokens_per_s=40) as address:
        yield address


@pytest.fixture
def page(browser, app):
    with watched(browser, app, "/benchmark") as page:
        expect(page.get_by_role("button", name="Start")).to_be_visible()
        yield page


def pick(page: Page, name: str):
    """One of a row of choices, whichever role it has."""
    settle(page)
    choice = page.get_by_test_id("stMain").get_by_role("radio", name=name, exact=True)
    choice.or_(page.get_by_test_id("stMain").get_by_role("button", name=name, exact=True)).first.click()
    settle(page)


def enter(page: Page, label: str, value: object):
    settle(page)
    fields = (page.get_by_role(role, name=label, exact=True) for role in ("textbox", "spinbutton"))
    field = functools.reduce(lambda one, other: one.or_(other), fields)
    field.fill(str(value))
    field.press("Enter")
    settle(page)


def value_of(page: Page, metric: str):
    found = page.get_by_test_id("stMetric").filter(has=page.get_by_text(metric, exact=True))
    return found.get_by_test_id("stMetricValue")


def test_a_sweep_is_watched_by_two_and_looked_at(page: Page, browser, app):
    pick(page, "Serving")
    enter(page, "Prompts", 80)
    enter(page, "Tokens in", 16)
    enter(page, "Tokens out", 24)
    pick(page, "Requests at once")
    enter(page, "Requests at once", "4, 12")
    expect(page.get_by_text("80 random prompts")).to_be_visible()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("measuring", exact=True)).to_be_visible()
    expect(value_of(page, "Done")).to_contain_text("of 80")

    other = browser.new_context(base_url=app)
    second = other.new_page()
    second.goto("/benchmark")
    expect(second.get_by_text("measuring", exact=True)).to_be_visible()
    other.close()
    menu = page.get_by_test_id("stSidebar")
    menu.get_by_role("link", name="Models").click()  # it goes on while nobody looks
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    menu.get_by_role("link", name="Benchmark").click()

    expect(page.get_by_role("button", name="See the result")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="See the result").click()
    expect(page).to_have_url(re.compile(r"\?bench="))
    expect(value_of(page, "Answered")).to_have_text("80")
    expect(page.locator(".js-plotly-plot")).to_have_count(3)  # the loads twice, and speed
    for view, charts in (("Latencies", 4), ("Requests", 1), ("Engine", 3)):
        pick(page, view)
        expect(page.locator(".js-plotly-plot")).to_have_count(2 + charts)
    pick(page, "Conditions")
    expect(page.get_by_text("python -m core bench serve")).to_be_visible()

    page.reload()
    expect(value_of(page, "Answered")).to_have_text("80")


def test_a_result_is_downloaded_and_read_again(page: Page, tmp_path):
    enter(page, "Prompts", 5)
    enter(page, "Tokens out", 4)
    enter(page, "Name", "to be read again")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="See the result").click(timeout=60_000)
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "to-be-read-again.json"
    assert json.loads(file.read_text())["num_requests"] == 5
    with page.expect_download() as download:
        page.get_by_role("button", name="Report, HTML").click()
    report = tmp_path / "report.html"
    download.value.save_as(report)
    assert "to be read again" in report.read_text()
    page.keyboard.press("Escape")

    page.get_by_role("button", name="All results").click()
    unfold(page, "Import results of vllm bench")
    page.locator('[data-testid="stFileUploader"] input').set_input_files(file)
    expect(page.get_by_text("1 file taken in.")).to_be_visible()
    expect(page.get_by_text("to be read again")).to_have_count(2)
    expect(page.get_by_text("· imported ·")).to_be_visible()


def test_the_example_table_is_chosen_and_measured(page: Page):
    pick(page, "My table")
    expect(page.get_by_role("textbox", name="Template")).to_have_value(re.compile("Is this review"))
    enter(page, "Rows", 4)
    enter(page, "Tokens out", 3)
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="See the result")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Throughput: reviews.csv")).to_be_visible()
