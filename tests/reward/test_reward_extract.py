"""Which part of a completion is the answer."""

import pytest

from deltarl.reward.extract import extract_answer
from deltarl.reward.limits import MAX_ANSWER_CHARS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\fbox{5}", "5"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right\}}", r"\left\{ x \right\}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{a\\}b}", "a\\\\"),  # an escaped backslash does not escape the brace after it
        (r"\boxed{1} but \boxed{2", None),
        (r"\boxed{}", None),
        (r"\boxed{  }", None),
        ("the answer is 5", None),
        (r"I write \boxed{5} since \boxed is wanted", "5"),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> no box", None),
        (r"<think>\boxed{1}", None),
        (r"a</think>b</think>\boxed{3}", "3"),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("marker", "text", "answer"),
    [
        ("####", "6*7=42\n#### 42\n", "42"),
        ("####", "#### 1\n#### 2", "2"),
        ("####", r"\boxed{42}", None),
        ("answer_tag", "<answer>1</answer> <answer> 2 </answer>", "2"),
        ("answer_tag", "<answer>1</answer> <answer>2", None),
        ("the_answer_is", "Hence the answer is 3.5. Done", "3.5"),
        ("the_answer_is", "The final ANSWER IS: **7**", "7"),
        ("the_answer_is", "the answer is 1. No, the answer is 2\nbye", "2"),
    ],
)
def test_other_markers(marker: str, text: str, answer: str | None) -> None:
    assert extract_answer(text, marker) == answer


def test_unknown_marker_names_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"'box'.*boxed, ####, answer_tag, the_answer_is"):
        extract_answer("", "box")


def test_length_cap_is_exact() -> None:
    longest = "1" * MAX_ANSWER_CHARS
    assert extract_answer(rf"\boxed{{{longest}}}") == longest
    assert extract_answer(rf"\boxed{{{longest}1}}") is None


@pytest.mark.timeout(5)
@pytest.mark.parametrize("marker", ["boxed", "####", "answer_tag", "the_answer_is"])
@pytest.mark.parametrize(
    "unit",
    [r"\boxed{", r"\boxed{x}", r"\boxed" + " " * 50, "{", "\\", "####", "<answer>", "the answer is ", "</think>"],
)
def test_a_megabyte_is_linear(marker: str, unit: str) -> None:
    # A quadratic scan of this takes minutes; the timeout is the assertion.
    extract_answer(unit * (1_000_000 // len(unit)), marker)
