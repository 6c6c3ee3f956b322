"""Which option an answer names."""

from collections.abc import Iterator

import pytest

from deltarl.reward.choices import gold_choice, read_choice
from deltarl.reward.verifier import Verifier


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("B", "B"),
        ("(B)", "B"),
        (r"\text{(B)}", "B"),
        (r"\textbf{B}", "B"),
        (r"\mathrm{B}.", "B"),
        ("**B**", "B"),
        ("B. 12 km", "B"),
        ("(B) 12 km", "B"),
        (r"$\text{(B) }12$", "B"),
        ("option B", "B"),
        ("The correct option is B", "B"),
        ("Answer: (C)", "C"),
        ("I think it is C.", "C"),
        ("It is not A, so it must be D", "D"),
        ("D, it cannot be A or B", "D"),
        ("B, because A is too small", "B"),
        ("A", "A"),
        ("A is right", "A"),
        ("A. car", "A"),
        ("B or C", "BC"),
        ("C or not C", ""),
        ("C. It is not C", ""),
        ("A or C", "AC"),
        ("A, B, C, D", "ABCD"),
        ("(A) and (B)", "AB"),
        ("All of A, B", "AB"),
        ("B. No wait, C", "BC"),
        ("A car", ""),  # the article
        ("I am not sure", ""),  # the pronoun
        ("the area of triangle A", ""),
        ("A dog and a cat", ""),
        ("C = 5", ""),
        ("x = C", ""),
        ("AB", ""),
        ("2B", ""),
        ("B + C", ""),
        ("E(X)", ""),
        ("B^2", ""),
        ("not B", ""),
        ("B is wrong", ""),
        ("neither A nor B", ""),
        ("b", ""),  # perhaps a variable
        ("12 km", ""),
    ],
)
def test_read_choice(answer: str, letters: str) -> None:
    choice = read_choice(answer)
    assert (set() if choice is None else choice.letters) == set(letters)


def test_a_small_letter_is_a_choice_where_there_are_options() -> None:
    for answer in ("b", "(b)", "b)"):
        choice = read_choice(answer, any_case=True)
        assert choice is not None
        assert choice.letters == {"B"}
    assert read_choice("a car", any_case=True) is None


@pytest.mark.parametrize(
    ("gold", "letter", "text"),
    [
        ("B", "B", ""),
        ("(B)", "B", ""),
        ("B. 12 km", "B", "12 km"),
        ("(D) Alina", "D", "Alina"),
        ("A car", None, ""),
        ("B + C", None, ""),
        ("(A) + B", None, ""),
        ("b", None, ""),
        ("12", None, ""),
    ],
)
def test_gold_choice(gold: str, letter: str | None, text: str) -> None:
    choice = gold_choice(gold)
    assert (choice and set(choice.letters)) == (letter and {letter})
    assert choice is None or choice.text == text


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as made:
        yield made


LETTERED = "Which is the distance? (A) 10 km (B) 12 km (C) 15 km (D) none of these"


@pytest.mark.parametrize(
    ("gold", "answer", "question", "right"),
    [
        ("B", "B", LETTERED, True),
        ("B", "b", LETTERED, True),
        ("B", "12 km", LETTERED, True),
        ("B", r"12\ \text{km}", LETTERED, True),
        ("B", "B. 12 km", LETTERED, True),
        ("D", "None of these.", LETTERED, True),
        ("12 km", "B", LETTERED, True),
        ("12", r"\text{(B)}", LETTERED, True),
        ("B. 12 km", "12 km", None, True),
        ("B. 12 km", "B", None, True),
        ("B", "C", LETTERED, False),
        ("B", "15 km", LETTERED, False),
        ("B", "B. 15 km", LETTERED, False),
        ("B", "12 km or 15 km", LETTERED, False),
        ("B", "B or C", LETTERED, False),
        ("12 km", "C", LETTERED, False),
        ("12 km", "E", LETTERED, False),
        ("B", "12 km", None, False),
        ("B", "b", None, False),
        ("A", "A car", None, False),
        ("A", "Area of triangle A", None, False),
        ("C", "x = D", None, False),
        ("62, 34", "C", "Which? (A) 62, 34 (B) 1, 2 (C) 34, 62", False),  # the pair in the order of option A
        ("62, 34", "A", "Which? (A) 62, 34 (B) 1, 2 (C) 34, 62", True),
    ],
)
def test_judging_a_choice(verifier: Verifier, gold: str, answer: str, question: str | None, right: bool) -> None:
    (verdict,) = verifier.score([rf"\boxed{{{answer}}}"], [gold], [question])
    assert verdict.correct is right, verdict


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The correct option is B.", True),
        ("So the best choice is (B).", True),
        ("Answer: (B)", True),
        ("Let me see.\n\n**B**", True),
        ("It is 12 km.\nThe answer is B. 12 km", True),
        ("The answer is not B.", False),
        ("The answer is B or C.", False),
        ("A car would be better.", False),
    ],
)
def test_a_choice_without_a_box(text: str, right: bool) -> None:
    with Verifier(marker="anywhere") as verifier:
        assert verifier.score([text], ["B"])[0].correct is right
