"""The reward for answers that are texts."""

import pytest

from deltarl.reward.exact_match import boxed_text, exact_match
from deltarl.reward.rewards import RewardSpec, Scorer


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (r"\boxed{cba}", True),
        (r"so \boxed{ cba } it is", True),
        (r"\boxed{abc} no, \boxed{cba}", True),
        (r"\boxed{cba} no, \boxed{abc}", False),
        (r"\boxed{abc}", False),  # not a product of a, b and c
        (r"\boxed{CBA}", False),
        (r"\boxed{c b a}", False),
        (r"\boxed{cbaa}", False),
        (r"\boxed{}", False),
        (r"\boxed{cba", False),
        (r"\boxed{cba} and \boxed{cba", False),
        ("cba", False),
        (r"<think>\boxed{cba}</think>", False),
        (r"<think>\boxed{abc}</think>\boxed{cba}", True),
        (r"<think>\boxed{cba}", False),
        ("", False),
    ],
)
def test_the_last_box_holds_the_answer_letter_by_letter(completion, right):
    assert exact_match([completion], ["cba"]) == [float(right)]


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ("kelu, doma, fi", True),
        ("fi,kelu ,  doma", True),
        ("kelu, doma", False),
        ("kelu, doma, fi, zu", False),
        ("kelu, doma, fi, fi", False),
        ("kelu doma fi", False),
        ("kelu, doma, fo", False),
    ],
)
def test_sets_are_right_in_any_order_and_whole(found, right):
    assert exact_match([rf"\boxed{{{found}}}"], ["kelu, doma, fi"], [True]) == [float(right)]


def test_order_counts_where_the_answer_is_no_set():
    texts = [r"\boxed{b, a}", r"\boxed{a,  b}"]
    assert exact_match(texts, ["a, b"] * 2, [False] * 2) == [0.0, 1.0]
    assert exact_match(texts, ["a, b"] * 2) == [0.0, 1.0]


def test_braces_within_the_box_belong_to_the_answer():
    assert boxed_text(r"\boxed{-\frac{7}{12}}.") == r"-\frac{7}{12}"


def test_it_goes_by_name_and_gets_the_column_of_sets():
    scorer = Scorer(rewards=[RewardSpec("match", "exact_match", 1.0, {})])
    columns = {"answer": ["a, b", "a, b"], "unordered": [True, False]}
    try:
        report = scorer.score(["p", "p"], [r"\boxed{b, a}"] * 2, columns)
    finally:
        scorer.close()
    assert report.scores == [1.0, 0.0]
