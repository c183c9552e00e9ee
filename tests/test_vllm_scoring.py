"""Scores of choices: what is asked of the engine, and the sums, on a model made by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from core.engines import vllm_scoring

END, ALSO_END = 0, 9


def next_token(prefix: tuple[int, ...], token: int) -> float:
    """The log-probability of a model of ten tokens, each prefix with its own preferences."""
    weights = [1 + (7 * sum(prefix) + 3 * len(prefix) + each * each) % 11 for each in range(10)]
    return math.log(weights[token] / sum(weights))


def scores(answers: list[tuple[int, ...]], end_ids: tuple[int, ...]) -> list[float]:
    asked = vllm_scoring.questions(answers, end_ids)
    found = {node: {token: next_token(node, token) for token in tokens} for node, tokens in asked.items()}
    return vllm_scoring.sums(answers, end_ids, found)


def test_each_question_is_asked_once_and_the_root_first() -> None:
    asked = vllm_scoring.questions([(1, 2, 3), (1, 2, 4), (1, 5), (6,)], (END,))
    assert asked == {(): (1, 6), (1,): (2, 5), (1, 2): (3, 4)}
    assert next(iter(asked)) == ()


def test_the_end_counts_only_where_another_answer_goes_on() -> None:
    short, long, other = scores([(1,), (1, 2), (3,)], (END, ALSO_END))
    ends = math.exp(next_token((1,), END)) + math.exp(next_token((1,), ALSO_END))
    assert short == pytest.approx(next_token((), 1) + math.log(ends))
    assert long == pytest.approx(next_token((), 1) + next_token((1,), 2))
    assert other == pytest.approx(next_token((), 3))


def test_all_answers_together_have_probability_one() -> None:
    tokens = [token for token in range(10) if token != END]
    answers = [*itertools.product(tokens, repeat=1), *itertools.product(tokens, repeat=2)]
    # those that end at once are the only ones missing
    missing = math.exp(next_token((), END))
    assert sum(math.exp(each) for each in scores(answers, (END,))) == pytest.approx(1 - missing)


def test_two_choices_with_the_same_tokens_have_the_same_score() -> None:
    first, second = scores([(1, 2), (1, 2)], (END,))
    assert first == second == pytest.approx(next_token((), 1) + next_token((1,), 2))
