"""Reports of benchmarks: what stands in them, that nothing in them runs, and the commands that write them."""

import json
import signal
import sys

import pytest
from bench_made import kept, point, record, repeats, subject
from playwright.sync_api import sync_playwright

from core.bench import engines, files, report
from core.bench.differences import compare
from core.bench.report_charts import Bar, Series, bars, histogram, lines
from core.bench.spec import BenchSpec, Load, Sweep
from core.bootstrap import find_browser
from core.cli import app as cli
from core.settings import load_settings
from core.store import Store

EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{ 7*7 }}'
EVIL_MARKDOWN = "![x](http://evil.example/a.png) | [y](http://evil.example) `z` @someone <b>"


@pytest.fixture
def one():
    """A sweep of three loads twice, of which the last brings nothing more, with a failed request."""
    loads = [Load(max_concurrency=places) for places in (1, 2, 4)]
    points = []
    for load, seconds in zip(loads, (4.0, 2.0, 1.99), strict=True):
        points += repeats([seconds, seconds * 1.01], load, start=len(points))
    points[0] = point([*points[0].records, record(error=f"too long {EVIL}")], 4.0, load=loads[0])
    spec = BenchSpec(kind="serve", sweep=Sweep(over="max_concurrency"))
    return subject(points, f"sweep {EVIL}", spec=spec, environment={"model": EVIL, "engine": "vllm"})


def looked_at(page_text, tmp_path):
    """(words, tags, requests, dialogs, errors) of the page in a browser."""
    path = tmp_path / "report.html"
    path.write_text(page_text, encoding="utf-8")
    asked, dialogs, errors = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(path.as_uri())
        # the text of an SVG is not in inner_text
        words = page.inner_text("body") + "\n".join(page.locator("svg text").all_text_contents())
        tags = page.evaluate("[...new Set([...document.querySelectorAll('*')].map(e => e.localName))]")
        browser.close()
    asked.remove(path.as_uri())
    return words, set(tags), asked, dialogs, errors


def test_the_page_runs_and_loads_nothing_and_shows_everything(one, tmp_path):
    words, tags, asked, dialogs, errors = looked_at(report.to_html(one.view, one.points), tmp_path)
    assert not asked and not dialogs and not errors
    assert not {"img", "script", "iframe", "link", "object"} & tags
    for said in (
        EVIL,
        "4 at once",
        "Output tokens/s",
        "too long",
        "1 requests failed",
        "(knee)",
        "TTFT, p99",
    ):
        assert said in words, said


def test_a_page_is_small_enough_to_send():
    many = subject(
        [point([record(0.1 + n / 1e4) for n in range(2000)], repeat=n, number=n) for n in range(3)]
    )
    assert len(report.to_html(many.view, many.points)) < 200_000


def test_a_comparison_says_what_differs_first_and_what_got_worse(tmp_path):
    before = subject(repeats([1.0, 1.01, 0.99]), "before", environment={"engine_version": "0.31"})
    after = subject(repeats([2.0, 2.02, 1.98]), f"after {EVIL}", environment={"engine_version": "0.32"})
    words, tags, asked, dialogs, errors = looked_at(
        report.comparison_html(compare([before, after])), tmp_path
    )
    assert not asked and not dialogs and not errors and not {"img", "script"} & tags
    assert words.index("Regressions") < words.index("What differs") < words.index("Differences are to before")
    for said in ("engine_version", "0.31", "0.32", "−50%, worse", "no difference shown", EVIL):
        assert said in words, said


def test_markdown_is_read_letter_by_letter():
    text = report.to_markdown(*as_pair(subject(repeats([1.0, 1.1]), EVIL_MARKDOWN)))
    head = text.splitlines()[0]
    assert "![" not in head and "](" not in head.replace("\\](", "")
    assert "\\|" in head and "\\<b\\>" in head and "\\@someone" in head
    tables = [line for line in text.splitlines() if line.startswith("| Output tokens/s")]
    assert len(tables) == 1 and "105" in tables[0]


def test_a_fence_in_a_specification_can_not_be_closed_from_inside():
    spec = BenchSpec(kind="serve", name="```\n# heading")
    text = report.to_markdown(*as_pair(subject(repeats([1.0]), "a", spec=spec)))
    assert "````json" in text


def test_a_benchmark_that_measured_nothing_has_a_page_too():
    empty = subject([])
    assert "Conditions" in report.to_html(empty.view, empty.points)


def test_engines_are_shown_with_how_often_the_slowest_goes_into_them():
    slow = subject(
        repeats([10.0, 10.1], Load(max_concurrency=8)), "slow", environment={"engine": "transformers"}
    )
    fast = subject(repeats([1.0, 1.01], Load(max_concurrency=8)), "fast", environment={"engine": "vllm"})
    found = engines.picture([slow, fast])
    text = report.engines_markdown([slow, fast], found)
    assert "## 8 at once" in text and "| vLLM |" in text and "10.0 times" in text
    assert "<svg" in report.engines_html([slow, fast], found)


# -- charts -------------------------------------------------------------------------


def test_every_chart_escapes_its_names():
    drawn = [
        bars([Bar(EVIL, 1.0, 0.5, 2.0)], EVIL),
        lines([Series(EVIL, [0, 1], [1, 2], [EVIL, EVIL]), Series("b", [0], [1])], EVIL, EVIL),
        histogram([1.0, 2.0, 2.5], EVIL, EVIL),
    ]
    for chart in drawn:
        assert "<img" not in chart and "<script" not in chart


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 2e-9], [5.0, 5.0], [1e12, 3.0]])
def test_charts_take_any_size_of_number(values):
    for chart in (
        histogram(values, "x", "y"),
        bars([Bar("a", value, None, None) for value in values], "x"),
        lines([Series("a", values, values)], "x", "y", marks=True),
    ):
        assert "nan" not in chart and "inf" not in chart


# -- on the command line --------------------------------------------------------------


@pytest.fixture
def here(settings, monkeypatch, capsys):
    """Run `python -m core bench ARGS` in this process; gives exit code, stdout and stderr."""
    monkeypatch.setenv("WORKBENCH_ENGINE", "scripted")
    before = signal.getsignal(signal.SIGTERM)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["core", "bench", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def two(settings):
    store = Store(load_settings().catalogue_path)
    ids = [
        kept(store, settings, subject(repeats([1.0, 1.01, 0.99], Load()), "before")),
        kept(store, settings, subject(repeats([2.0, 2.02, 1.98], Load()), "after")),
    ]
    store.close()
    return ids


def test_compare_prints_writes_and_fails_on_a_regression_if_told_to(here, two, tmp_path):
    code, out, err = here("compare", *two, "-o", tmp_path / "both.html")
    assert code == 0, err
    assert "−50%, worse" in out and "regression: after, Output tokens/s all at once: −50%" in out
    assert "−50%, worse" in (tmp_path / "both.html").read_text()
    assert here("compare", *two, "--fail")[0] == 3
    assert here("compare", *reversed(two), "--fail")[0] == 0
    assert here("compare", *two, "--fail", "--threshold", 60)[0] == 0
    data = json.loads(here("compare", *two, "--json", "--baseline", two[1])[1])
    assert data["baseline"] == two[1]
    change = data["loads"][0]["figures"]["output_throughput"][0]["difference"]
    assert (change["verdict"], round(change["share"], 2)) == ("better", 1.0)


def test_compare_takes_files_of_vllm_beside_kept_ones(here, two, tmp_path):
    document = files.to_json(repeats([4.0], Load())[0], None, {"model": "theirs"})
    document.pop("workbench")
    (tmp_path / "theirs.json").write_text(json.dumps(document))
    code, out, err = here("compare", two[0], tmp_path / "theirs.json")
    assert code == 0, err
    assert "can't be told (one repeat)" in out and "theirs" in out


def test_compare_refuses_what_it_can_not_do(here, two, tmp_path):
    assert here("compare", two[0])[0] == 1
    code, _out, err = here("compare", two[0], "20000101-000000-000000")
    assert code == 1 and "There is no benchmark" in err
    assert here("compare", *two, "--baseline", "other")[0] == 2
    assert here("compare", *two, "-o", tmp_path / "x.pdf")[0] == 2


def test_history_report_and_import(here, two, tmp_path):
    code, out, _err = here("history")
    assert code == 0
    assert out.index(two[0]) < out.index(two[1]) and "110, 109, 111" in out
    assert here("history", two[0], "--metric", "nonsense")[0] == 2
    assert here("report", two[0], "-o", tmp_path / "one.md")[0] == 0
    assert "# before" in (tmp_path / "one.md").read_text()
    (tmp_path / "wrong.json").write_text("[]")
    code, _out, err = here("import", tmp_path / "wrong.json")
    assert code == 1 and "Traceback" not in err
    document = files.to_json(repeats([1.0])[0], None, {"model": "theirs"})
    document.pop("workbench")
    (tmp_path / "theirs.json").write_text(json.dumps(document))
    assert here("import", tmp_path / "theirs.json")[0] == 0
    assert "theirs.json" in here("list")[1]


def test_engines_refuses_fewer_than_two(here):
    code, _out, err = here("engines", "--engines", "vllm")
    assert code == 1 and "Two engines are needed" in err
    assert here("engines", "--engines", "vllm,other")[0] == 2


def as_pair(one):
    return one.view, one.points
