"""Comparisons on the real engine: sets that differ, a beam search, probabilities, the model as judge."""

import pytest
from waiting import until

from core.answers import read_logprobs
from core.comparing.cell import Place
from core.comparing.judge import Judge
from core.comparing.runner import Comparisons
from core.comparing.scores import score
from core.comparing.spec import read_spec
from core.store import Store


@pytest.fixture
def comparisons(engine_runtime, tmp_path):
    store = Store(tmp_path / "catalogue.sqlite")
    comparisons = Comparisons(engine_runtime, store)
    yield comparisons
    comparisons.close()
    store.close()


def test_sets_answer_as_their_parameters_say_and_the_model_judges(comparisons):
    spec = read_spec(
        {
            "prompts": [{"messages": "Name a colour."}, {"messages": "Name an animal."}],
            "sets": [
                {"name": "cold", "params": {"temperature": 0, "max_tokens": 12}},
                {"name": "hot", "params": {"temperature": 1.5, "max_tokens": 12}},
                {"name": "one word", "params": {"structured_outputs": {"choice": ["red", "cat"]}}},
                {"name": "beams", "params": {"beam_width": 3, "max_tokens": 12}},
                {"name": "Alpaca", "style": "Alpaca", "params": {"temperature": 0, "max_tokens": 12}},
            ],
            "seeds": [1, 2],
            "top_logprobs": 2,
        }
    )
    comparison_id = comparisons.start(spec)
    view = until(lambda: not (now := comparisons.view(comparison_id)).is_live and now, timeout_s=200)
    assert view.counts == {"complete": 20}, [cell.details["error"] for cell in view.cells.values()]
    text = {place: cell.text for place, cell in view.cells.items()}
    for prompt in (0, 1):
        cold, hot, choice, beams = (
            [text[Place(prompt, one, sample)] for sample in (0, 1)] for one in range(4)
        )
        assert cold[0] == cold[1] and hot[0] != hot[1] and beams[0] == beams[1]
        assert set(choice) <= {"red", "cat"}
    for cell in view.cells.values():
        tokens = read_logprobs(cell.details)
        assert len(tokens) == cell.details["output_tokens"] and len(tokens[0].alternatives) == 2
        assert cell.details["mean_logprob"] <= 0
    likely = {
        name: score(spec, view.cells).means[place, "mean_logprob"].mean
        for place, name in enumerate(("cold", "hot"))
    }
    assert likely["cold"] > likely["hot"]

    comparisons.judging.start(comparison_id, Judge(), sets=(0, 1))
    progress = until(
        lambda: (now := comparisons.judging.progress(comparison_id)).state != "judging" and now,
        timeout_s=200,
    )
    assert (progress.state, progress.failed) == ("complete", 0), progress.error
    votes = comparisons.votes.list(comparison_id)
    assert len(votes) == progress.total and all(vote.details["reasons"] for vote in votes)
