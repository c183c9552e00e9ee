"""A comparison as a file: what stands in it, and that nothing in it can run."""

import csv
import io
import json
from dataclasses import replace

import pytest
from playwright.sync_api import sync_playwright

from core.bootstrap import find_browser
from core.comparing.cell import Cell, Place, Vote
from core.comparing.report import to_csv, to_html, to_spec_json
from core.comparing.runner import ComparisonView
from core.comparing.spec import read_spec
from core.comparing.words import changed_words

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{ 7*7 }}'


@pytest.fixture
def view():
    spec = read_spec(
        {
            "name": f"Evil {EVIL}",
            "prompts": [{"messages": f"Question {n} {EVIL}", "reference": f"answer {n}"} for n in range(6)],
            "sets": [
                {"name": "cold", "params": {"temperature": 0}, "system": "Be brief."},
                {"name": f"warm {EVIL}", "params": {"temperature": 1}},
            ],
            "seeds": [1, None],
        }
    )
    cells = {}
    for place in (Place(prompt, one, sample) for prompt in range(6) for one in (0, 1) for sample in (0, 1)):
        text = f"answer {place.prompt}" if place.set == 0 else f"=longer answer {place.prompt} {EVIL}"
        details = {"output_tokens": len(text), "finish_reason": "stop", "model": "tiny", "ttft_s": 0.5}
        cells[place] = Cell(text, "complete", details)
    cells[Place(5, 1, 1)] = Cell("", "error", {"error": f"too long {EVIL}"})
    return ComparisonView(
        comparison_id="x",
        name=spec.name,
        spec=spec,
        cells=cells,
        counts={"complete": 23, "error": 1},
        is_live=False,
    )


VOTES = [
    Vote(
        vote_id=str(n),
        created_at=None,
        voter="Ann",
        prompt=n,
        sample=0,
        set_a=0,
        set_b=1,
        winner="a",
        details={},
    )
    for n in range(6)
]


def test_the_csv_has_a_line_for_each_cell(view):
    lines = list(csv.DictReader(io.StringIO(to_csv(view), newline="")))
    assert len(lines) == 24
    first = lines[0]
    assert (first["prompt"], first["set"], first["sample"], first["seed"]) == ("1", "cold", "1", "1")
    assert (first["answer"], first["exact"], first["system"], first["ttft_s"]) == (
        "answer 0",
        "1.0",
        "Be brief.",
        "0.5",
    )
    assert json.loads(first["params"]) == {"temperature": 0}
    failed = [line for line in lines if line["state"] == "error"]
    assert len(failed) == 1 and EVIL in failed[0]["error"] and failed[0]["exact"] == ""
    assert "mean_logprob" not in first, "a column that holds nothing"


def test_a_spreadsheet_runs_no_answer(view):
    assert "'=longer" in to_csv(view) and "'=longer" not in to_csv(view, escape_formulas=False)


def test_the_specification_repeats_the_comparison(view):
    assert read_spec(to_spec_json(view)) == view.spec


def test_the_page_runs_and_loads_nothing_and_shows_everything(view, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(to_html(view, VOTES), encoding="utf-8")
    asked, dialogs, errors = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(path.as_uri())
        shown = page.inner_text("body")
        tags = page.evaluate("[...new Set([...document.querySelectorAll('*')].map(e => e.localName))]")
        marked = page.locator("mark").first.inner_text()
        browser.close()
    assert asked == [path.as_uri()] and not dialogs and not errors
    assert not {"img", "script", "iframe", "link", "object"} & set(tags)
    assert marked.startswith("=longer")
    for words in (
        "answer 3",
        EVIL,
        "too long",
        "Exact match",
        "no difference shown",
        "lower",
        "wins",
        "Ann",
        "tiny",
    ):
        assert words in shown, words


def test_a_comparison_without_answers_has_a_page_too(view):
    empty = replace(view, cells={place: Cell("", "missing") for place in view.cells})
    assert "missing" in to_html(empty) and "Differences" not in to_html(empty)


@pytest.mark.parametrize(
    ("text", "other", "new"),
    [
        ("the red cat", "the cat", ["red "]),
        ("same  text", "same\ntext", []),
        ("天很蓝", "天蓝", ["很"]),
        ("", "x", []),
    ],
)
def test_words_that_the_other_lacks_are_marked(text, other, new):
    parts = changed_words(text, other)
    assert "".join(part for _, part in parts) == text
    assert [part for changed, part in parts if changed] == new
