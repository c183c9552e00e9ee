"""Metrics against figures worked out by hand and those of the publications they come from."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pytest

from core import evals
from core.evals import as_number, bootstrap_interval, find_number
from core.references import Confusion, ConfusionCounter, ReferenceScan, as_text, label_key


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [("Paris", "Paris", 1), (" Paris\n", "Paris", 1), ("paris", "Paris", 0), ("", "Paris", 0)],
)
def test_exact_match_forgives_outer_white_space_only(answer, reference, score):
    assert evals.exact(answer, reference) == score


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\tmat.", "cats mat"),
        ("A man, a plan, an end", "man plan end"),
        ("Theory of an Atheist", "theory of atheist"),  # articles are whole words
        ("“北京”，中国。", "北京中国"),
        ("ＡＢＣ　１２３", "abc 123"),  # full width
        ("हिन्दी।", "हिन्दी"),  # vowel signs are no punctuation
        ("Straße", "strasse"),
        ("the", ""),
    ],
)
def test_normalising_as_squad_does_in_every_script(text, normal):
    assert evals.normalise(text) == normal


def test_normalised_match():
    assert evals.normalised("The Eiffel Tower!", "eiffel tower") == 1
    assert evals.normalised("eiffel towers", "eiffel tower") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        # 3 of 4 words said (the article goes), 3 of 3 wanted: 2 · 3/4 · 1 / (3/4 + 1)
        ("the big Denver Broncos team", "Denver Broncos team", 6 / 7),
        ("a b b c", "b b d", 2 * 2 / (3 + 3)),  # repeated words count as often as both have them
        ("no overlap", "at all", 0),
        ("", "something", 0),
        ("the", "An", 1),  # neither has a token: as SQuAD 2.0
        # 我喜欢北京烤鸭 (7) and 我爱北京烤鸭 (6) share 我北京烤鸭 (5)
        ("我喜欢北京烤鸭", "我爱北京烤鸭", 10 / 13),
        ("答案是 Python 语言", "python语言", 2 * 3 / (6 + 3)),
        ("カタカナ", "カタ", 2 * 2 / 6),
    ],
)
def test_token_f1(answer, reference, score):
    assert evals.token_f1(answer, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        # Lin 2004, section 3.1: S1 "police killed the gunman"
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        # the README of Google's rouge-score; LCS "the quick brown jumps the" of 8 and 9 words
        (
            "The quick brown dog jumps on the log.",
            "The quick brown fox jumps over the lazy dog",
            2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9),
        ),
        ("", "x", 0),
        ("我喜欢北京", "我爱北京", 2 * 3 / 9),
        ("don't", "don t", 1),
    ],
)
def test_rouge_l(answer, reference, score):
    assert evals.rouge_l(answer, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        # published with sacrebleu, as its own tests (with another smoothing, hence five digits)
        (
            "Co nás nejvíc trápí, protože lékaři si vybírají, kdo bude žít a kdo zemře.",
            "Nejvíce smutní jsme z toho, že musíme rozhodovat o tom, kdo bude žít a kdo zemře.",
            0.39141,
        ),
        ("aa", "ab", 0.25),
        # n = 1: precision and recall 2/3, n = 2: 1/2 and 1/2, n = 3: 0; means 7/18
        ("abx", "aby", 7 / 18),
        ("a b c", "abc", 1),
        ("中文", "中文", 1),
        ("", "abc", 0),
        ("", "", 1),
    ],
)
def test_chrf(answer, reference, score):
    assert evals.chrf(answer, reference) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "value", "percent"),
    [
        ("3 + 4 = 7", "7", False),
        ("The total is $1,234,567.50.", "1234567.50", False),
        ("about −5 °C", "-5", False),
        ("答案是４２。", "42", False),
        ("it rose by 4.5 %", "4.5", True),
        ("6.02e23", "6.02E+23", False),
        ("No.5", "5", False),
        (".5", "0.5", False),
        ("**42**", "42", False),
        ("12,34", "34", False),  # not a thousands separator
    ],
)
def test_the_last_number_is_found(text, value, percent):
    assert find_number(text) == evals.Number(Decimal(value), percent)


@pytest.mark.parametrize("text", ["", "none", "H2O", "v1.2.3", "x_1"])
def test_digits_within_a_word_are_no_number(text):
    assert find_number(text) is None


def test_a_cell_is_a_number_only_when_it_is_nothing_else():
    assert as_number(" €1,200 ").value == 1200
    assert as_number("45%").percent
    assert as_number("5 kg") is None
    assert as_number("") is None


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "score"),
    [
        ("So 42.", "42", 0, 1),
        ("42.0", "42", 0, 1),
        ("first 42, then 43", "42", 0, 0),
        ("1.1", "1.0", 0.1, 1),  # as doubles they are 0.10000000000000009 apart
        ("1.11", "1.0", 0.1, 0),
        ("12345678901234567890", "12345678901234567891", 0.5, 0),  # the same double
        ("45%", "45", 0, 1),
        ("45%", "0.45", 0, 1),
        ("0.45", "45%", 0, 1),
        ("45%", "0.45%", 0, 0),
        ("no idea", "1", 5, 0),
        ("9" * 5000, "1", 5, 0),
    ],
)
def test_numeric_match(answer, reference, tolerance, score):
    assert evals.numeric(answer, reference, tolerance) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ('{"name": "Ann", "age": 30}', {"name": "Ann", "age": 30}, 1),
        ('Here it is:\n```json\n{"name": " Ann ", "age": 31}\n```', {"name": "Ann", "age": 30}, 1 / 2),
        ('{"age": 30.0, "extra": 1}', {"age": 30}, 1),
        ('{"ok": 1}', {"ok": True}, 0),  # though 1 == True in Python
        ('{"tags": ["a", "b"], "at": {"x": 1}}', {"tags": ["a", "b"], "at": {"x": 1}}, 1),
        ('{"tags": ["b", "a"]}', {"tags": ["a", "b"]}, 0),
        ('{"a": null}', {"a": None, "b": None}, 1 / 2),  # a field that is missing is not null
        ('{"a": NaN}', {"a": 1}, 0),
        ("{broken", {"a": 1}, 0),
        ("[1]", {"a": 1}, 0),
        ("{" * 50_000, {"a": 1}, 0),
        ("{}", {}, 1),
    ],
)
def test_json_fields(answer, reference, score):
    assert evals.json_fields(answer, reference) == pytest.approx(score)


def test_numbers_in_json_agree_within_the_tolerance():
    assert evals.json_fields('{"x": 1.05}', {"x": 1.0}, 0.1) == 1
    assert evals.json_fields('{"x": 1.05}', {"x": 1.0}) == 0


def test_every_metric_gives_1_for_the_reference_itself_and_stays_within_0_and_1():
    texts = ["", " ", "a", "The", "的", "e\u0301", "🙂", "1", "x" * 3000, "\x00", "a b c d", "¿…?"]
    for metric in (evals.exact, evals.normalised, evals.token_f1, evals.rouge_l, evals.chrf):
        for one in texts:
            assert metric(one, one) == pytest.approx(1), (metric, one)
            for other in texts:
                assert 0 <= metric(one, other) <= 1


# -- what a column holds ------------------------------------------------------------


def scanned(values):
    scan = ReferenceScan()
    for value in values:
        scan.add(value)
    return scan


@pytest.mark.parametrize(
    ("values", "type", "labels"),
    [
        (["yes", "no", "Yes."], "labels", ("no", "yes")),
        (["+1", "-1", "+1"], "numbers", ("-1", "+1")),
        ([10, 9, 10.0], "numbers", ("9", "10")),
        (["1.5", "$1,000", "1.5"], "numbers", ()),
        ([{"a": 1}, '{"a": 2}', '{"a": 1}'], "json", ()),
        (["Paris", "London"], "text", ()),  # every one different: no labels
        ([str(n % 21) + "x" for n in range(100)], "text", ()),
        (["a long sentence that nobody would call a label"] * 2, "text", ()),
        (['{"a": 1}', "[1]", "[1]"], "labels", ("[1]", '{"a": 1}')),
        ([True, False, True], "labels", ("false", "true")),
        (["好", "坏", "好"], "labels", ("坏", "好")),
        ([], "text", ()),
    ],
)
def test_what_a_column_holds(values, type, labels):
    scan = scanned(values)
    assert (scan.type, scan.labels) == (type, labels)


def test_a_scan_is_settled_once_nothing_can_make_it_anything_but_text():
    assert not scanned(["no"]).settled
    assert scanned(["a sentence of more than forty characters, as free text has"]).settled


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None), ("  ", None), (float("nan"), None), (True, "true"), (4.0, "4"), (2.5, "2.5"),
        (Decimal("1.50"), "1.50"), (["ä"], '["ä"]'), (dt.date(2024, 5, 1), "2024-05-01"), (" x ", " x "),
    ],
)  # fmt: skip
def test_a_cell_as_an_answer_would_be_written(value, text):
    assert as_text(value) == text


def test_labels_are_one_whatever_their_case_and_what_stands_around_them():
    assert {label_key(text) for text in ("Yes", " yes.", "**YES**", "“yes”", "ＹＥＳ！")} == {"yes"}
    assert len({label_key(text) for text in ("C", "C++", "C#", "-1", "+1", "1")}) == 6
    assert label_key("***") == "***"


def test_a_confusion_matrix_worked_out_by_hand():
    counter = ConfusionCounter(("cat", "dog", "eel"))
    pairs = [("cat", "cat")] * 3 + [("dog", "cat")] + [("Dog.", "dog")] * 2 + [("a bird", "dog")]
    for answer, reference in [*pairs, ("cat", "eel")]:
        counter.add(answer, reference)
    table = counter.confusion()
    assert table == Confusion(("cat", "dog", "eel"), ((3, 1, 0, 0), (0, 2, 0, 1), (1, 0, 0, 0)))
    cat, dog, eel = table.scores()
    assert (cat.precision, cat.recall, cat.f1, cat.support) == (3 / 4, 3 / 4, 3 / 4, 4)
    assert (dog.precision, dog.recall, dog.f1, dog.support) == (2 / 3, 2 / 3, 2 / 3, 3)
    assert (eel.precision, eel.recall, eel.f1, eel.support) == (None, 0, 0, 1)
    assert table.accuracy == 5 / 8
    assert table.macro_f1 == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)


# -- intervals -----------------------------------------------------------------------


def test_the_interval_of_a_share_is_that_of_the_binomial():
    # 30 of 100: sd 0.0458, so 0.3 ± 0.0898
    low, high = bootstrap_interval([1.0] * 30 + [0.0] * 70)
    assert low == pytest.approx(0.21, abs=0.015)
    assert high == pytest.approx(0.39, abs=0.015)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.beta(2, 5, size=80), resamples=300, seed=trial)
        hits += low <= 2 / 7 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_the_normal_approximation_goes_on_where_the_bootstrap_ends():
    values = np.random.default_rng(1).beta(0.5, 0.5, size=10_001)
    assert bootstrap_interval(values) == pytest.approx(bootstrap_interval(values[:10_000]), abs=1e-3)


def test_an_interval_is_the_same_every_time_and_narrower_with_less_confidence():
    values = np.random.default_rng(2).random(500)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    wide, narrow = bootstrap_interval(values), bootstrap_interval(values, confidence=0.5)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


@pytest.mark.parametrize("count", [1, 5, 20_000])
def test_values_that_are_all_the_same_give_an_interval_without_width(count):
    assert bootstrap_interval([0.5] * count) == (0.5, 0.5)


def test_no_values_no_interval():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
