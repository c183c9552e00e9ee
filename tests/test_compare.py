"""One prompt under several parameter sets: streamed together, kept, stopped, reopened."""

import pytest
from waiting import until

from core.compare import Comparisons, ParameterSet
from core.errors import WorkbenchError

ENDLESS = {"ignore_eos": True, "max_tokens": 8000}
SETS = [
    ParameterSet("cold", {"temperature": 0.0, "max_tokens": 3}),
    ParameterSet("warm", {"temperature": 1.0}),
]


@pytest.fixture
def comparisons(runtime, store):
    comparisons = Comparisons(runtime, store)
    yield comparisons
    comparisons.close()


def ended(comparisons, comparison_id):
    return until(lambda: not (view := comparisons.view(comparison_id)).is_live and view)


def test_all_sets_answer_and_are_kept(comparisons, store, runtime):
    comparison_id = comparisons.start("Why?", "Be brief.", SETS)
    assert comparisons.view(comparison_id).is_live
    view = ended(comparisons, comparison_id)
    assert (view.prompt, view.system) == ("Why?", "Be brief.")
    assert [cell.name for cell in view.cells] == ["cold", "warm"]
    cold, warm = view.cells
    assert cold.params == SETS[0].params and cold.details["output_tokens"] == 3
    assert cold.details["finish_reason"] == "length" and warm.details["finish_reason"] == "stop"
    assert all(cell.state == "complete" and cell.details["ttft_s"] > 0 for cell in view.cells)
    assert cold.text != warm.text
    until(lambda: Comparisons(runtime, store).view(comparison_id) == view)
    assert [one.comparison_id for one in comparisons.recent()] == [comparison_id]


def test_sets_are_generated_at_the_same_time(comparisons, runtime):
    comparison_id = comparisons.start("Why?", "", [ParameterSet(str(n), ENDLESS) for n in range(4)])
    until(lambda: runtime.engine.stats().running == 4)
    comparisons.stop(comparison_id)
    ended(comparisons, comparison_id)


def test_stop_ends_what_runs_and_keeps_what_is_done(comparisons, runtime):
    comparison_id = comparisons.start("Why?", "", [*SETS, ParameterSet("endless", ENDLESS)])
    until(lambda: comparisons.view(comparison_id).cells[0].state == "complete")
    until(lambda: comparisons.view(comparison_id).cells[2].live.text)
    comparisons.stop(comparison_id)
    view = ended(comparisons, comparison_id)
    assert view.cells[0].state == "complete"
    assert view.cells[2].state == "stopped" and view.cells[2].text
    until(lambda: runtime.engine.stats().running == 0)


def test_text_is_in_the_store_while_the_answers_grow(comparisons, store):
    comparison_id = comparisons.start("Why?", "", [ParameterSet("endless", ENDLESS)])
    until(lambda: store.comparison(comparison_id).body["cells"][0]["text"])


def test_after_a_crash_unfinished_cells_are_interrupted(comparisons, store):
    comparison_id = comparisons.start("Why?", "", SETS)
    ended(comparisons, comparison_id)
    body = until(lambda: (kept := store.comparison(comparison_id).body)["cells"][1]["text"] and kept)
    body["cells"][1] |= {"state": "generating", "text": "Half an"}
    store.save_comparison("crashed", {**body, "owner_pid": 2**22 + 1, "owner_started": 1.0})
    view = comparisons.view("crashed")
    assert not view.is_live
    assert [(cell.state, cell.text) for cell in view.cells][1] == ("interrupted", "Half an")
    assert view.cells[0].state == "complete"


def test_closing_the_app_keeps_the_texts_as_interrupted(comparisons, store):
    comparison_id = comparisons.start("Why?", "", [ParameterSet("endless", ENDLESS)])
    until(lambda: comparisons.view(comparison_id).cells[0].live.text)
    comparisons.close()
    [cell] = store.comparison(comparison_id).body["cells"]
    assert cell["state"] == "interrupted" and cell["text"]


def test_a_prompt_too_long_is_each_sets_error(comparisons):
    view = ended(comparisons, comparisons.start("word " * 9000, "", SETS))
    assert [cell.state for cell in view.cells] == ["error", "error"]
    assert "too long" in view.cells[0].details["error"]


@pytest.mark.parametrize(("prompt", "sets"), [(" \n", SETS), ("Why?", []), ("Why?", SETS * 3)])
def test_what_cannot_be_compared_is_refused_and_not_kept(comparisons, prompt, sets):
    with pytest.raises(WorkbenchError):
        comparisons.start(prompt, "", sets)
    assert comparisons.recent() == []


def test_an_unknown_comparison_is_none(comparisons):
    assert comparisons.view("nothing") is None
