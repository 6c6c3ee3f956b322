"""Words around an answer: those that introduce it, and those that deny it or make another of it."""

from collections.abc import Iterator

import pytest

from deltarl.reward.prose import bare_answer
from deltarl.reward.verdict import Reason
from deltarl.reward.verifier import Verifier


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[str, Verifier]]:
    made = {marker: Verifier(marker=marker) for marker in ("boxed", "the_answer_is", "anywhere")}
    yield made
    for verifier in made.values():
        verifier.close()


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        ("Answer: 5", "5"),
        ("The final answer is 5", "5"),
        (r"\text{Answer: }5", "5"),
        (r"\text{The answer is 5}", "5"),
        ("So we find that $x < 3$.", "$x < 3$."),
        ("**Answer:** 5", "5"),
        ("Answer - 5", None),  # a dash, or minus five?
        ("The answer is", None),
        ("5", None),
        ("beta", None),
    ],
)
def test_bare_answer(answer: str, bare: str | None) -> None:
    assert bare_answer(answer) == bare


@pytest.mark.parametrize(
    "text",
    [
        "So we get 5.",
        "there are 5 of them",
        "No doubt it is 5",
        "We have 3 + 2 = 5",
        "x = 5",
        "3 + 2",
        "It is not 4, it's 5",
        "about 5",
        "The answer is 5, not 6",
        "The answer is 5 because 6 is too large",
        "It cannot be 4, so it is 5",
        "The number is not 4 which is 5",
        "We have 2 + 3, so 5.",
        "we add 2 and get 5",
        "The answer is 5 apples",
        "**Answer:** 5",
        "a square with length 5",
    ],
)
def test_anywhere_accepts(verifiers: dict[str, Verifier], text: str) -> None:
    (verdict,) = verifiers["anywhere"].score([text], ["5"])
    assert verdict.correct, verdict


@pytest.mark.parametrize(
    "text",
    [
        "It is definitely not 5",
        "5 is wrong",
        "5 is not right",
        "I don't think it is 5",
        "The answer isn't 5",
        "The answer is not 5.",
        "The answer is definitely not 5",
        "The answer is 5, which is wrong",
        "The answer is 5. That is wrong.",
        "The answer is 5. No, that's incorrect.",
        "I don't believe that the correct answer is 5",
        "I doubt that the answer is 5",
        "5 cannot be the answer",
        "The result, 5, is impossible",
        "5 does not work",
        "5 fails",
        "neither 4 nor 5",
        "anything but 5",
        "All numbers except 5",
        "If only it were 5",
        "Is it 5?",
        "wrong: 5",
        "it is 5 or 6",
        "it is 6 or 5",
        "4, 5",
        "The answer is 5 or 6",
        "between 4 and 5",
        "Final answer: 4 (or 5)",
        "It is 4 maybe 5",
        "either 4 / 5",
        "The answer is 4 out of 5",
        "more than 5",
        "at least 5",
        "minus 5",
        "half of 5",
        "5 million",
        "5 squared",
        "5!",
        "x > 5",
        "x != 5",
    ],
)
def test_anywhere_refuses(verifiers: dict[str, Verifier], text: str) -> None:
    (verdict,) = verifiers["anywhere"].score([text], ["5"])
    assert not verdict.correct, verdict


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{Answer: 5}",
        r"\boxed{\text{The answer is } 5}",
        r"If not otherwise stated, \boxed{5}",
        r"\boxed{4}. Hmm," + " let me check that again," * 10 + r" \boxed{5}",
        "\\boxed{5}\n\nIncorrect options: 3, 4",
        r"\boxed{5}<|im_end|><|im_start|>user No. \boxed{6}",
    ],
)
def test_a_box_counts(verifiers: dict[str, Verifier], text: str) -> None:
    (verdict,) = verifiers["boxed"].score([text], ["5"])
    assert verdict.correct, verdict


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{5} is wrong",
        r"\boxed{5}\text{ is incorrect}",
        r"It is not $\boxed{5}$",
        r"It isn't \boxed{5}",
        r"\boxed{5}. Wait, that is wrong.",
        r"\boxed{5}, which is not correct",
        r"\boxed{not 5}",
        r"\boxed{\text{not } 5}",
        r"\boxed{\text{wrong}: 5}",
    ],
)
def test_a_box_is_taken_back(verifiers: dict[str, Verifier], text: str) -> None:
    (verdict,) = verifiers["boxed"].score([text], ["5"])
    assert (verdict.reason, verdict.score) == (Reason.RETRACTED, 0.0)


def test_a_negation_may_be_the_answer(verifiers: dict[str, Verifier]) -> None:
    for gold in ("not possible", "never", "not a subspace"):
        assert verifiers["boxed"].score([rf"\boxed{{{gold}}}"], [gold])[0].correct
        assert verifiers["the_answer_is"].score([f"So the answer is {gold}."], [gold])[0].correct


def test_what_is_denied_does_not_give_way_to_an_earlier_guess(verifiers: dict[str, Verifier]) -> None:
    for marker, text in [("anywhere", "It is 5. It is not 6"), ("boxed", r"\boxed{5}. Then not \boxed{6}")]:
        assert verifiers[marker].score([text], ["5"])[0].reason is Reason.RETRACTED


def test_boxes_are_a_list_only_for_a_list(verifiers: dict[str, Verifier]) -> None:
    verifier = verifiers["boxed"]
    for text in (r"\boxed{1}, \boxed{2}", r"\boxed{2} and \boxed{1}"):
        assert verifier.score([text], ["1, 2"])[0].correct
        assert verifier.score([text], ["2"])[0].reason is Reason.AMBIGUOUS
        assert not verifier.score([text], ["(1, 2)"])[0].correct
    assert not verifier.score([r"\boxed{1}. After all that, \boxed{2}"], ["2"])[0].correct
    assert verifier.score([r"\boxed{2}, \boxed{2}"], ["2"])[0].correct
    apart = "\\boxed{1}\n\n\\boxed{2}"
    assert verifier.score([apart], ["2"])[0].reason is Reason.AMBIGUOUS
    assert verifier.score(["\\boxed{1}\n\nFinal answer:\n\\boxed{2}"], ["2"])[0].correct
