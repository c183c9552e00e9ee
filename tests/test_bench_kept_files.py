"""Files that benchmarks read: they stayed in the workspace for ever, whatever was deleted."""

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.bench.runner import Benchmarks
from core.bench.spec import BenchSpec, TableWorkload
from core.errors import WorkbenchError
from core.run_spec import PromptSpec
from core.runtime import Runtime
from core.store import Store


@pytest.fixture
def benchmarks(make_scripted_runtime: Callable[..., Runtime]) -> Iterator[Benchmarks]:
    runtime = make_scripted_runtime()
    store = Store(runtime.settings.catalogue_path)
    benchmarks = Benchmarks(runtime, store, runtime.settings)
    yield benchmarks
    benchmarks.close()
    store.close()


def uploaded(benchmarks: Benchmarks, text: str, name: str = "mine.csv") -> Path:
    return benchmarks.files.keep(io.BytesIO(text.encode()), name)


def measured(benchmarks: Benchmarks, path: Path) -> str:
    workload = TableWorkload(path=str(path), prompt=PromptSpec(template="{{ word }}"), output_len=2)
    view = benchmarks.wait(benchmarks.start(BenchSpec(kind="throughput", workload=workload)), 30)
    assert view.state == "complete", view.message
    return view.benchmark_id


def in_the_folder(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def aged(path: Path) -> Path:
    then = time.time() - 25 * 3600
    os.utime(path, (then, then))
    return path


def test_a_table_goes_with_the_last_benchmark_that_reads_it(benchmarks):
    path = uploaded(benchmarks, "word\napple\n")
    other = uploaded(benchmarks, "word\npear\n", "theirs.csv")
    first, second = measured(benchmarks, path), measured(benchmarks, path)
    benchmarks.delete(first)
    assert path.is_file()
    measured(benchmarks, path)
    benchmarks.delete(second)
    benchmarks.delete(benchmarks.recent()[0].benchmark_id)
    assert in_the_folder(path) == {other.name, "names.json"}
    assert benchmarks.files.name_of(str(other)) == "theirs.csv"
    assert "mine" not in (path.parent / "names.json").read_text()


def test_a_table_stays_while_a_benchmark_reads_it_that_came_from_a_file(benchmarks):
    path = uploaded(benchmarks, "word\napple\n")
    first = measured(benchmarks, path)
    imported = benchmarks.import_file("again.json", benchmarks.path(first, 0).read_bytes())
    benchmarks.delete(first)
    assert path.is_file()
    benchmarks.delete(imported)
    assert not path.is_file()


def test_a_search_keeps_its_table_when_its_trials_are_deleted(benchmarks):
    path = uploaded(benchmarks, "word\napple\n")
    trial = measured(benchmarks, path)
    with benchmarks.holding(benchmarks.view(trial).spec):
        benchmarks.delete(trial)
        aged(path)
        benchmarks.sweep()
        assert path.is_file()
    benchmarks.sweep()
    assert not path.is_file()


def test_only_files_of_the_workspace_are_removed(benchmarks, tmp_path):
    mine = tmp_path / "names.json"  # also one that is called as our own list
    mine.write_text('[{"word": "apple"}]')
    uploaded(benchmarks, "word\npear\n")
    benchmarks.delete(measured(benchmarks, mine))
    assert mine.is_file()
    assert "mine.csv" in (benchmarks.files._folder / "names.json").read_text()


def test_a_start_removes_what_was_chosen_yesterday_and_never_measured(benchmarks):
    needed, forgotten, fresh = (uploaded(benchmarks, f"word\n{n}\n") for n in ("apple", "pear", "plum"))
    measured(benchmarks, needed)
    partial = needed.with_name("20260101-000000-abcdef.partial")
    partial.write_text("half")
    for path in (needed, forgotten, partial):
        aged(path)
    benchmarks.sweep()
    assert in_the_folder(needed) == {needed.name, fresh.name, "names.json"}
    measured(benchmarks, needed)


def test_a_table_that_is_chosen_again_is_no_leftover(benchmarks):
    path = aged(uploaded(benchmarks, "word\napple\n"))
    assert uploaded(benchmarks, "word\napple\n") == path
    benchmarks.sweep()
    assert path.is_file()


def test_a_start_removes_folders_that_a_kill_left_without_a_benchmark(benchmarks):
    path = uploaded(benchmarks, "word\napple\n")
    kept = measured(benchmarks, path)
    folder = path.parent.parent
    for name in ("20260101-000000-aaaaaa", "20260101-000000-bbbbbb", "someone's"):
        (folder / name).mkdir()
    (folder / "20260101-000000-bbbbbb" / "point-000.json").write_text("{}")  # the catalogue was lost
    for entry in folder.iterdir():
        aged(entry)
    benchmarks.sweep()
    left = {entry.name for entry in folder.iterdir()}
    assert left == {kept, "files", "20260101-000000-bbbbbb", "someone's"}


def test_a_start_goes_on_when_nothing_can_be_removed(benchmarks, monkeypatch, caplog):
    path = aged(uploaded(benchmarks, "word\napple\n"))

    def full(*_values):
        raise WorkbenchError("The catalogue can't be written: database or disk is full.")

    monkeypatch.setattr(benchmarks._kept, "files_read", full)
    with caplog.at_level("WARNING", logger="core.bench.runner"):
        benchmarks.sweep()
    assert path.is_file() and "can't be removed" in caplog.text
