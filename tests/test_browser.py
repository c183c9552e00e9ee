"""One walk through the workbench in a real browser, on the real engine, started as a user starts it."""

import csv
import json
import re
import shlex
import time

import pytest
from playwright.sync_api import Page, expect
from served import choose, served, settle, unfold

ROWS = 160
pytestmark = [pytest.mark.engine, pytest.mark.browser]


@pytest.fixture(scope="module")
def app(embedded_model, tmp_path_factory):
    """The workbench with the embedded model, in a process and a workspace of its own; gives its address."""
    home = tmp_path_factory.mktemp("browser-home")
    (home / "models").mkdir()
    (home / "models" / embedded_model.name).symlink_to(embedded_model)
    with served(home, kv_cache_memory_bytes=400 << 20, max_num_seqs=32) as address:
        yield address


@pytest.fixture
def page(browser, app):
    context = browser.new_context(
        base_url=app, viewport={"width": 1280, "height": 900}, accept_downloads=True
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()


def wait_for_engine(page: Page):
    expect(sidebar(page).get_by_text("SmolLM2-135M-Instruct").first).to_be_visible(timeout=240_000)
    expect(sidebar(page).get_by_role("button", name="Unload")).to_be_visible(timeout=240_000)


def stop_button(page: Page):
    """The chat's own; Streamlit has one of its own in the header while a script runs."""
    return page.get_by_test_id("stBottomBlockContainer").get_by_role("button", name="Stop")


def sidebar(page: Page):
    return page.get_by_test_id("stSidebar")


def test_a_page_opened_directly_has_the_menu_and_the_engine_bar_while_the_model_loads(page):
    page.goto("/batch")
    expect(page.get_by_role("heading", name="Batch")).to_be_visible()
    expect(sidebar(page).get_by_role("link", name="Chat")).to_be_visible()
    expect(
        sidebar(page).get_by_text("SmolLM2-135M-Instruct").or_(sidebar(page).get_by_text("Loading")).first
    ).to_be_visible()
    sidebar(page).get_by_role("link", name="Home").click()
    expect(page.get_by_role("heading").first).to_be_visible()
    wait_for_engine(page)


def test_an_answer_streams_survives_leaving_the_page_and_can_be_stopped(page):
    page.goto("/chat")
    wait_for_engine(page)
    page.get_by_placeholder("Write a message").fill("Say hello in five words.")
    page.keyboard.press("Enter")
    expect(page.get_by_text("TTFT").first).to_be_visible(timeout=60_000)
    expect(stop_button(page)).to_have_count(0, timeout=120_000)
    address = page.url
    assert "c=" in address
    page.get_by_placeholder("Write a message").fill("Now write a very long story about a lighthouse.")
    page.keyboard.press("Enter")
    expect(stop_button(page)).to_be_visible()
    sidebar(page).get_by_role("link", name="Home").click()
    expect(stop_button(page)).to_have_count(0)
    page.goto(address)
    expect(page.get_by_text("Say hello in five words.").last).to_be_visible()
    expect(page.get_by_text("Now write a very long story").last).to_be_visible()
    # either it is still being written, and Stop ends it, or it reached its end meanwhile
    stop = stop_button(page)
    if stop.is_visible():
        stop.click()
    expect(page.get_by_text("TTFT")).to_have_count(2, timeout=60_000)
    page.reload()
    expect(page.get_by_text("TTFT")).to_have_count(2)


def test_a_table_goes_in_and_comes_back_answered(page, tmp_path):
    table = tmp_path / "twenty.csv"
    with table.open("w", encoding="gb18030", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["编号", "question", "note"])
        writer.writerows([f"{n:03d}", f"What is {n} plus {n}?", "第一行，\n第二行"] for n in range(20))
    page.goto("/batch")
    wait_for_engine(page)
    page.locator("input[type=file]").set_input_files(table)
    expect(page.get_by_text("20 rows", exact=False).first).to_be_visible(timeout=30_000)
    page.get_by_role("textbox", name="Template").fill("Answer with a number. {{ question }}")
    page.get_by_role("textbox", name="Template").press("Control+Enter")
    expect(page.get_by_text(re.compile(r"Row 1 · \d+ of 8,192 tokens"))).to_be_visible()
    expect(page.get_by_text("Answer with a number. What is 0 plus 0?")).to_be_visible()
    page.get_by_role("button", name="Run 20 rows").click()
    expect(page.get_by_text("of 20 rows").first).to_be_visible()
    sidebar(page).get_by_role("link", name="Chat").click()
    expect(page.get_by_placeholder("Write a message")).to_be_visible()
    sidebar(page).get_by_role("link", name="Batch").click()
    expect(page.get_by_text("Finished: 20 of 20 rows")).to_be_visible(timeout=120_000)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV", exact=True).click()
    target = tmp_path / "answers.csv"
    waiting.value.save_as(target)
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["编号", "question", "note", "answer"]
    assert [row["编号"] for row in rows] == [f"{n:03d}" for n in range(20)]
    assert {row["note"] for row in rows} == {"第一行，\n第二行"}
    assert {row["answer_status"] for row in rows} == {"ok"}
    assert all(row["answer"].strip() and int(row["answer_output_tokens"]) > 0 for row in rows)


def test_a_run_is_forecast_tried_watched_evaluated_and_downloaded(page, tmp_path):
    table = tmp_path / "films.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "label"])
        moods = ["good" if n % 3 else "bad" for n in range(ROWS)]
        writer.writerows([n, f"Film {n} was {mood}, said everybody.", mood] for n, mood in enumerate(moods))
        writer.writerow([ROWS, "7" * 9000, "good"])
        writer.writerow([ROWS + 1, "", "good"])
    page.goto("/batch")
    wait_for_engine(page)
    page.locator("input[type=file]").first.set_input_files(table)
    ask_for_choices(page)
    see_forecast(page)
    page.get_by_role("button", name="Try 20 rows").click()
    expect(page.get_by_text(f"Stopped: 20 of {ROWS + 2} rows")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("heading", name="Forecast of the whole run")).to_be_visible()
    page.get_by_role("button", name=re.compile("^.*Resume: ")).click()
    watch(page)
    see_results(page)
    see_evaluation(page)
    download_all(page, tmp_path, moods)
    see_what_was_run(page)


def ask_for_choices(page):
    template = page.get_by_role("textbox", name="Template")
    template.fill("{% if review %}{{ review }} Was it good or bad?{% endif %}")
    template.press("Control+Enter")
    expect(page.get_by_text("Film 0 was bad, said everybody. Was it good or bad?")).to_be_visible()
    unfold(page, "Shape of the answers")
    page.get_by_role("radio", name="Choices").or_(page.get_by_role("button", name="Choices")).click()
    settle(page)
    choices = page.get_by_role("textbox", name="Choices, one a line")
    choices.fill("good\nbad")
    choices.press("Control+Enter")
    settle(page)
    page.get_by_text("A column with the probability of each choice").click()
    unfold(page, "Several answers, log-probabilities, evaluation")
    choose(page, "Column with the right answers", "label")
    expect(page.get_by_role("spinbutton", name="Tolerance for numbers")).to_be_enabled()


def see_forecast(page):
    expect(metric(page, "Requests")).to_have_text(f"{ROWS + 2}")
    expect(page.get_by_text("1 request too long for the context of 8,192 tokens")).to_be_visible()
    lengths = page.get_by_test_id("stPlotlyChart")
    expect(lengths.get_by_text("Context 8,192")).to_be_visible()
    expect(lengths.get_by_text("Prompt tokens")).to_be_visible()


def watch(page):
    """Look at the live view until the run is done; a fast machine may show little of it."""
    expected = ("Time left", "Latest answers", "Output tokens/s over time", "Rows/s over time")
    seen, started = set(), time.monotonic()
    while not page.get_by_text(f"Finished: {ROWS + 2} of {ROWS + 2} rows").is_visible():
        assert time.monotonic() - started < 120
        live = page.get_by_role("button", name="Pause").is_visible()
        seen |= {
            what
            for what in expected
            if live and page.get_by_text(what).or_(page.get_by_label(what)).first.is_visible()
        }
        time.sleep(0.2)
    took = time.monotonic() - started
    assert took < 4 or {"Time left", "Latest answers"} <= seen
    assert took < 15 or seen == set(expected)


def see_results(page):
    expect(metric(page, "Errors")).to_have_text("1")
    expect(metric(page, "Skipped")).to_have_text("1")
    unfold(page, "1 row failed")
    expect(page.get_by_text(re.compile(r"1 × .*8,?192"))).to_be_visible()
    expect(page.get_by_text(f"Rows 1 to 100 of {ROWS + 2}")).to_be_visible()
    search = page.get_by_placeholder("Search answers, errors and all columns")
    search.fill("film 7 was")
    search.press("Enter")
    expect(page.get_by_text(f"1 of {ROWS + 2} rows")).to_be_visible()
    settle(page)
    page.wait_for_timeout(500)  # it draws itself after the page has
    page.get_by_test_id("stDataFrame").first.click(position={"x": 200, "y": 52})
    expect(page.get_by_text("Row 8 · Ok")).to_be_visible()
    expect(page.get_by_text("Probability of each choice")).to_be_visible()
    search.fill("")
    search.press("Enter")
    expect(page.get_by_text("Row 8 · Ok")).to_have_count(0)
    skipped = page.get_by_role("button", name="Skipped 1")
    skipped.click()
    expect(page.get_by_text(f"1 of {ROWS + 2} rows")).to_be_visible()
    skipped.click()
    expect(page.get_by_text(f"Rows 1 to 100 of {ROWS + 2}")).to_be_visible()


def see_evaluation(page):
    expect(page.get_by_role("heading", name="Evaluation")).to_be_visible()
    expect(page.get_by_text(f"{ROWS} answers scored against label")).to_be_visible()
    expect(page.get_by_text(re.compile(r"Accuracy \d+\.\d% · macro F1"))).to_be_visible()
    matrix = page.get_by_test_id("stPlotlyChart").filter(has_text="Reference")
    expect(matrix.get_by_text("other")).to_be_visible()
    expect(page.get_by_text("The worst rows first")).to_be_visible()
    unfold(page, "Forecast and what came")
    expect(page.get_by_test_id("stDataFrame").filter(has_text="Actual").first).to_be_attached()


def download_all(page, tmp_path, moods):
    files = {}
    for name in ("CSV", "CSV for Excel", "Excel", "JSON Lines", "Parquet"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=name, exact=True).click()
        files[name] = tmp_path / waiting.value.suggested_filename.replace("films", name)
        waiting.value.save_as(files[name])
    with files["CSV"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer_status"] for row in rows] == ["ok"] * ROWS + ["error", "skipped"]
    assert [row["label"] for row in rows[:ROWS]] == moods
    for row in rows[:ROWS]:
        assert row["answer"] in ("good", "bad"), row
        assert float(row["answer_p_good"]) + float(row["answer_p_bad"]) == pytest.approx(1)
    assert files["CSV for Excel"].read_bytes() == b"\xef\xbb\xbf" + files["CSV"].read_bytes()
    assert files["Excel"].read_bytes()[:2] == b"PK"
    lines = files["JSON Lines"].read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["answer"] for line in lines[:ROWS]] == [row["answer"] for row in rows[:ROWS]]
    assert files["Parquet"].read_bytes()[:4] == b"PAR1"


def see_what_was_run(page):
    unfold(page, "What was run")
    words = shlex.split(page.get_by_test_id("stCode").first.inner_text())
    assert words[:5] == ["python", "-m", "core", "batch", "films.csv"]
    assert words[words.index("--choice") :][:4] == ["--choice", "good", "--choice", "bad"]
    assert words[words.index("--reference") + 1] == "label"


def metric(page, label):
    """The figure under this label."""
    return page.get_by_test_id("stMetric").filter(has_text=label).first.get_by_test_id("stMetricValue")


def test_a_file_that_is_no_table_is_explained_on_the_page(page, tmp_path):
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"")
    page.goto("/batch")
    page.locator("input[type=file]").set_input_files(broken)
    expect(page.get_by_text("broken.csv is empty")).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)
