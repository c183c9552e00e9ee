"""The figures of a comparison: of one answer, of a set, of a difference, of votes."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.comparing import scores
from core.comparing.cell import Cell, Place, Vote
from core.comparing.cells import CellStore
from core.comparing.scores import (
    NO_DIFFERENCE,
    cell_scores,
    difference,
    distinct,
    interval,
    repetition,
    score,
)
from core.comparing.spec import read_spec
from core.comparing.votes import Votes, pairs_of, wilson, win_rates
from core.errors import WorkbenchError


def cell(text, state="complete", **details):
    return Cell(text, state, {"output_tokens": len(text.split()), "finish_reason": "stop", **details})


def spec_of(prompts=2, sets=2, samples=1, references=None, **values):
    return read_spec(
        {
            "prompts": [
                {"messages": f"Question {n}", "reference": references[n] if references else None}
                for n in range(prompts)
            ],
            "sets": [{"name": f"set {n}", **values} for n in range(sets)],
            "seeds": list(range(samples)),
        }
    )


# -- one answer -----------------------------------------------------------------------


def test_distinct_and_repetition_count_words():
    text = "The cat, the cat. A dog"
    assert distinct(text, 1) == pytest.approx(4 / 6)
    assert distinct(text, 2) == pytest.approx(4 / 5)
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert distinct("", 1) is None and repetition("only three words") is None


def test_chinese_goes_by_the_character():
    assert distinct("好好学习，好好学习", 1) == pytest.approx(3 / 8)
    assert repetition("好好学习好好学习") == pytest.approx(1 / 5)


@given(st.text(max_size=200), st.integers(1, 4))
def test_shares_are_shares_of_any_text(text, n):
    share = distinct(text, n)
    assert share is None or 0 < share <= 1
    found = cell_scores(Cell(text, "complete"), reference=text or None)
    assert all(0 <= value <= 1 for value in found.values())
    if text.strip():
        assert found["exact"] == 1


def test_a_models_thoughts_are_not_its_answer():
    found = cell_scores(cell('<think>Is it a or b? b b b b b b</think>{"x": 1}'), reference='{"x": 1}')
    assert found["json"] == 1 and found["exact"] == 1 and "repetition" not in found


def test_an_answer_is_held_against_the_structure_asked_for():
    params = {"structured_outputs": {"choice": ["yes", "no"]}}
    assert cell_scores(cell("yes"), params)["valid"] == 1
    assert cell_scores(cell("maybe"), params)["valid"] == 0
    assert "valid" not in cell_scores(cell("yes"))


def test_what_was_not_measured_is_left_out():
    found = cell_scores(Cell("Some words", "complete", {"ttft_s": None, "finish_reason": "length"}))
    assert found["cut"] == 1 and "ttft_s" not in found and "output_tokens" not in found


def test_self_similarity_is_one_for_equal_texts_and_needs_two():
    assert scores.self_similarity(["a b", "a b", "A, b!"]) == 1
    assert scores.self_similarity(["a b", "c d"]) == 0
    assert scores.self_similarity(["a b"]) is None


# -- sets ------------------------------------------------------------------------------


def test_samples_are_averaged_before_prompts_are_compared():
    cells = {
        Place(prompt, place, sample): cell("word " * (1 + place * 10 + prompt + sample))
        for prompt in range(8)
        for place in range(2)
        for sample in range(2)
    }
    found = score(spec_of(8, 2, 2), cells)
    mean = found.means[1, "output_tokens"]
    assert (mean.mean, mean.n) == (pytest.approx(15), 8) and mean.low < 15 < mean.high
    change = found.differences[1, "output_tokens"]
    assert (change.mean, change.low, change.high, change.n, change.verdict) == (10, 10, 10, 8, "higher")
    assert (0, "output_tokens") not in found.differences
    assert score(spec_of(8, 2, 2), cells, baseline=1).differences[0, "output_tokens"].verdict == "lower"


def test_only_prompts_that_both_have_complete_are_compared():
    cells = {Place(0, 0, 0): cell("a"), Place(0, 1, 0): cell("a b"), Place(1, 1, 0): cell("a b c")}
    cells[Place(1, 0, 0)] = cell("never finished", "stopped")
    found = score(spec_of(), cells)
    assert found.means[1, "output_tokens"].n == 2 and found.differences[1, "output_tokens"].n == 1
    assert found.finished == {0: {"stop": 1}, 1: {"stop": 2}}


def test_references_choose_their_metrics():
    cells = {Place(n, 0, 0): cell(text) for n, text in enumerate(("It is 4.", "5"))}
    found = score(spec_of(2, 1, references=["4", "6"]), cells)
    assert found.reference_type == "numbers"
    assert found.means[0, "numeric"].mean == 0.5 and found.metrics[0] == "exact"
    assert "token_f1" not in found.metrics
    assert score(spec_of(2, 1), cells).reference_type is None


def test_json_is_a_figure_only_where_some_answer_is_json():
    plain = {Place(0, 0, 0): cell("no"), Place(0, 1, 0): cell("none")}
    assert "json" not in score(spec_of(1), plain).metrics
    found = score(spec_of(1), {**plain, Place(0, 1, 0): cell("[1]")})
    assert found.means[0, "json"].mean == 0 and found.means[1, "json"].mean == 1


def test_nothing_complete_has_no_figures():
    found = score(spec_of(), {Place(0, 0, 0): Cell("", "waiting")})
    assert not found.metrics and not found.means and not found.differences and not found.finished


def test_few_prompts_show_no_difference_however_clear():
    assert difference([5.0] * 5).verdict == NO_DIFFERENCE
    assert difference([5.0] * 6).verdict == "higher"
    assert difference([-5.0] * 6).verdict == "lower"
    assert difference([3.0]) == scores.Difference(3.0, None, None, 1, NO_DIFFERENCE)


def test_an_interval_that_holds_zero_shows_no_difference():
    found = difference([1, -1, 2, -2, 0.5, -0.6, 1.1, -0.9])
    assert found.low < 0 < found.high and found.verdict == NO_DIFFERENCE


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """95% of the time from 8 normal values on, where the plain percentile bootstrap has 89%."""
    chance = random.Random(7)
    held = 0
    for _ in range(300):
        low, high = interval([chance.gauss(0, 1) for _ in range(8)])
        held += low <= 0 <= high
    assert 0.91 <= held / 300 <= 0.99


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (30, 2.042)]
)
def test_students_t(freedom, quantile):
    assert scores._student_t(0.975, freedom) == pytest.approx(quantile, rel=0.01)


# -- votes ------------------------------------------------------------------------------


@pytest.fixture
def kept(store):
    """A kept comparison of 3 prompts, 3 sets and 2 samples, all different."""
    cells = CellStore(store)
    comparison_id = cells.add(spec_of(3, 3, 2))
    places = [Place(*at) for at in itertools.product(range(3), range(3), range(2))]
    cells.save(comparison_id, {place: cell(f"answer {place}") for place in places})
    return Votes(cells), comparison_id, cells


def test_every_pair_is_asked_once_with_sides_by_chance(kept):
    votes, comparison_id, _ = kept
    seen, sides = set(), []
    while pair := votes.next_pair(comparison_id):
        assert pair == votes.next_pair(comparison_id), "a page drawn again shows another pair"
        assert (pair.done, pair.total) == (len(seen), 18)
        sides.append(pair.set_a < pair.set_b)
        seen.add((pair.prompt, pair.sample, *sorted((pair.set_a, pair.set_b))))
        votes.record(comparison_id, pair.prompt, pair.sample, pair.set_a, pair.set_b, "a")
        if len(seen) == 3:  # every two sets get votes at the same pace
            assert {pair[2:] for pair in seen} == {(0, 1), (0, 2), (1, 2)}
    assert len(seen) == 18 and 0 < sum(sides) < 18


def test_voters_have_their_own_pairs_and_a_second_vote_replaces_the_first(kept):
    votes, comparison_id, _ = kept
    votes.record(comparison_id, 0, 0, 0, 1, "a")
    votes.record(comparison_id, 0, 0, 1, 0, "a", "you", {"why": "shorter"})
    votes.record(comparison_id, 0, 0, 0, 1, "tie", "Ann")
    mine, hers = votes.list(comparison_id)
    assert (mine.set_a, mine.winner, mine.details) == (1, "a", {"why": "shorter"})
    assert (mine.voter, hers.voter) == ("you", "Ann")
    assert votes.next_pair(comparison_id, "Ben").done == 0


def test_two_sets_can_be_judged_alone(kept):
    votes, comparison_id, _ = kept
    pair = votes.next_pair(comparison_id, sets=(2, 0))
    assert {pair.set_a, pair.set_b} == {0, 2} and pair.total == 6


def test_equal_and_unfinished_answers_are_no_pair():
    cells = {Place(0, 0, 0): cell("same"), Place(0, 1, 0): cell(" same\n"), Place(1, 0, 0): cell("one")}
    cells[Place(1, 1, 0)] = cell("two", "stopped")
    assert pairs_of(spec_of(), cells) == []
    cells[Place(1, 1, 0)] = cell("two")
    assert pairs_of(spec_of(), cells) == [(1, 0, 0, 1)]


@pytest.mark.parametrize(
    "bad", [(3, 0, 0, 1, "a"), (0, 2, 0, 1, "a"), (0, 0, 1, 1, "a"), (0, 0, 0, -1, "a"), (0, 0, 0, 1, "c")]
)
def test_a_vote_on_what_is_not_there_is_refused(kept, bad):
    votes, comparison_id, _ = kept
    with pytest.raises(WorkbenchError):
        votes.record(comparison_id, *bad)
    assert votes.list(comparison_id) == []


def vote(set_a, set_b, winner):
    return Vote(vote_id="", created_at=None, voter="you", prompt=0, sample=0, set_a=set_a, set_b=set_b,
                winner=winner, details={})  # fmt: skip


def test_win_rates_do_not_depend_on_the_sides():
    votes = [vote(0, 1, "a"), vote(1, 0, "b"), vote(1, 0, "a"), vote(0, 1, "tie"), vote(2, 0, "a")]
    rates = win_rates(votes)
    first = rates.pairs[0, 1]
    assert (first.wins, first.losses, first.ties, first.n, first.rate) == (2, 1, 1, 4, 0.625)
    assert rates.sets[0].losses == 2 and rates.sets[2].wins == 1 and rates.sets[1].rate == 0.375
    assert (1, 2) not in rates.pairs and win_rates([]).pairs == {}


def test_votes_show_a_winner_only_when_there_are_enough():
    assert win_rates([vote(0, 1, "a")] * 5).pairs[0, 1].verdict == NO_DIFFERENCE
    assert win_rates([vote(0, 1, "a")] * 6).pairs[0, 1].verdict == "wins"
    assert win_rates([vote(0, 1, "b")] * 6).sets[0].verdict == "loses"
    assert win_rates([vote(0, 1, "a")] * 6 + [vote(0, 1, "b")] * 4).pairs[0, 1].verdict == NO_DIFFERENCE


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilsons_interval_holds_the_share_and_has_a_width(wins, more):
    n = wins + more
    low, high = wilson(wins / n, n)
    assert 0 <= low <= wins / n <= high <= 1 and high > low


def test_wilsons_interval_is_the_published_one():
    """Newcombe (1998), table I: 81 of 263."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
