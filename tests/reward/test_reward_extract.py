"""Which part of a completion is the answer."""

import pytest

from deltarl.reward.extract import MARKERS, extract_answer
from deltarl.reward.limits import MAX_ANSWER_CHARS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", None),  # so close together that none is the last word
        (r"\boxed{1} then" + " more" * 50 + r" \boxed{2}", "2"),
        (r"\boxed5", "5"),
        (r"\framebox{5}", "5"),
        ("\\boxed{5}\nHuman: and now? \\boxed{6}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right\}}", r"\left\{ x \right\}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{a\\} b}", "a\\\\"),  # an escaped backslash does not escape the brace after it
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
        ("####", "#### 1\n#### 2", None),
        ("####", "#### 1\n" + "more " * 50 + "\n#### 2", "2"),
        ("####", r"#### \boxed{5}", "5"),
        ("####", r"\boxed{42}", None),
        ("answer_tag", "<answer>1</answer> <answer> 2 </answer>", None),
        ("answer_tag", "<answer>2</answer> <answer> 2 </answer>", "2"),
        ("answer_tag", "<answer>1</answer>" + " more" * 50 + "<answer> 2 </answer>", "2"),
        ("answer_tag", r"<answer>\boxed{5}</answer>", "5"),
        ("answer_tag", "<Answer>5</Answer>", "5"),
        ("answer_tag", "<answer>1</answer> <answer>2", None),
        ("the_answer_is", "Hence the answer is 3.5. Done", "3.5"),
        ("the_answer_is", "The final ANSWER IS: **7**", "7"),
        ("the_answer_is", "the answer is 1. No, the answer is 2\nbye", None),
        ("the_answer_is", "the answer is 2. So the answer is 2 apples\nbye", "2 apples"),
        ("the_answer_is", r"The final answer is $\boxed{5}$. I hope it is correct.", "5"),
        ("the_answer_is", "**Final Answer**: 5", "5"),
        ("the_answer_is", "### Final Answer\n5", "5"),
        ("the_answer_is", "The answer would be 5", "5"),
        ("the_answer_is", "La respuesta es 5.", "5"),
        ("the_answer_is", "Die Antwort lautet 5.", "5"),
        ("the_answer_is", "Ответ: 5", "5"),
    ],
)
def test_other_markers(marker: str, text: str, answer: str | None) -> None:
    assert extract_answer(text, marker) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{(3, 3)} \text{ for part (a) and } \boxed{(1, 1)}", "(3, 3), (1, 1)"),
        (r"\boxed{1}, \boxed{2}, \boxed{3}", "1, 2, 3"),
        (r"$x = \boxed{5}$ and $y = \boxed{6}$", "x = 5, y = 6"),
        (r"$x = \boxed{5}$ or $x = \boxed{6}$", "5, 6"),
        (r"\boxed{1}." + "\n\nLet me check.\n\n" + r"\boxed{1}", "1"),
        (r"$\boxed{28}$ percent", r"28\%"),
        (r"\boxed 5", "5"),
        (r"$\boxed{5}$, $\boxed{5}$", "5"),
        (r"\boxed{5}. \boxed{6}", "5, 6"),  # so close together that none is the last word
        (r"$a = \boxed{5}$, $b = \boxed{2}$, $a + b = \boxed{7}$", "7"),
    ],
)
def test_boxes_that_belong_together(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("marker", "text", "answer"),
    [
        ("any_marker", r"The answer is 3, so \boxed{4}", "4"),
        (
            "any_marker",
            r"\boxed{255} is not all. Final Answer: The final answer is $10,455$. I hope it is correct.",
            "$10,455$",
        ),
        ("any_marker", "<answer>7</answer>", "7"),
        ("any_marker", "#### 8", "8"),
        ("any_marker", r"\boxed{4} <|im_start|>user \boxed{5}", "4"),
        ("any_marker", "there are 12 of them", None),
        ("anywhere", "there are 12 of them", "12"),
        ("anywhere", "Hence $x = 4$ holds.", "x = 4"),
        ("anywhere", "381\u200b391 of them", "381\u200b391 of them"),  # not 391
    ],
)
def test_the_first_marker_there_is(marker: str, text: str, answer: str | None) -> None:
    assert extract_answer(text, marker) == answer


def test_unknown_marker_names_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"'box'.*boxed, ####, answer_tag, the_answer_is"):
        extract_answer("", "box")


def test_length_cap_is_exact() -> None:
    longest = "1" * MAX_ANSWER_CHARS
    assert extract_answer(rf"\boxed{{{longest}}}") == longest
    assert extract_answer(rf"\boxed{{{longest}1}}") is None


@pytest.mark.timeout(5)
@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize(
    "unit",
    [r"\boxed{", r"\boxed{x}", r"\boxed" + " " * 50, "{", "\\", "####", "<answer>", "the answer is ", "</think>"],
)
def test_a_megabyte_is_linear(marker: str, unit: str) -> None:
    # A quadratic scan of this takes minutes; the timeout is the assertion.
    extract_answer(unit * (1_000_000 // len(unit)), marker)
