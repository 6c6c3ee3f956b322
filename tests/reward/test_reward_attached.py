"""What stands around a box: part of the answer, another answer, or nothing to do with it."""

from collections.abc import Iterator

import pytest

from deltarl.reward.extract import extract_answer
from deltarl.reward.verdict import Reason
from deltarl.reward.verifier import Verifier


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[str, Verifier]]:
    made = {marker: Verifier(marker=marker) for marker in ("boxed", "anywhere")}
    yield made
    for verifier in made.values():
        verifier.close()


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"$-\boxed{5}$", "-5"),
        (r"\boxed{5}\times 10^3", "5000"),
        (r"$\boxed{5}$ million", "5000000"),
        (r"$\frac{1}{\boxed{5}}$", r"\frac15"),
        (r"$\boxed{5}\pi$", r"5\pi"),
        (r"$x > \boxed{5}$", "x > 5"),
        (r"$\boxed{5}\text{ km}$", r"5000\text{ m}"),
        (r"$\boxed{5}$ km/h", r"5\text{ km/h}"),
        (r"\boxed{101}$_2$", "101_2"),
        (r"\boxed{5}$\text{ cm}^2$", r"5\text{ cm}^2"),
        (r"\boxed{5} cm$^2$", r"5\text{ cm}^2"),
        (r"\boxed{5}\text{ cm}$^2$", r"5\text{ cm}^2"),
    ],
)
def test_what_is_attached_is_read_with_the_box(verifiers: dict[str, Verifier], text: str, gold: str) -> None:
    assert verifiers["boxed"].score([text], [gold])[0].correct
    assert not verifiers["boxed"].score([text], ["5"])[0].correct or r"\text" in gold


@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n", " \n", ".\n", "$\n"])
def test_what_stands_on_the_line_before_is_not_attached(verifiers: dict[str, Verifier], end: str) -> None:
    verdict = verifiers["boxed"].score([f"60-7=53{end}\\boxed{{53}}"], ["53"])[0]
    assert verdict.correct
    assert verdict.extracted == "53"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{5}^2",
        r"\boxed{5}!",
        r"\boxed{5}x",
        r"\boxed{5} + C",
        r"x \ne \boxed{5}",
        r"2\boxed{5}",
        r"1\boxed{5}",
        r"0.\boxed{5}",
        r"\boxed{5}.7",
        r"\boxed{5},000",
        r"$2 \boxed{5}$",
        r"\sqrt{\boxed{5}}",
        r"$\log \boxed{5}$",
        r"\boxed{5} squared",
        r"\boxed{5} to the power of 3",
        r"\boxed{5}:7",
        r"$\sqrt{}$\boxed{5}",
        r"$2^{}$ \boxed{5}",
        r"$3 \cdot{}$ $\boxed{5}$",
        r"$\sin$ \boxed{5}",
        r"\boxed{5}$^2$",
        r"Let $x$ be what it is. " * 40 + r"So \boxed{5} $^2$",
        r"$\boxed{5}$ $\times 10^3$",
        r"\(\boxed{5}\) \(\pm 1\)",
        r"\boxed{5} $> x$",
        r"any number but \boxed{5}",
        r"all reals except $\boxed{5}$",
        r"\boxed{5} (this is incorrect)",
        r"\boxed{5}? No, it is 6.",
    ],
)
def test_a_box_is_not_read_alone(verifiers: dict[str, Verifier], text: str) -> None:
    assert not verifiers["boxed"].score([text], ["5"])[0].correct


def test_a_unit_behind_a_box_may_conflict(verifiers: dict[str, Verifier]) -> None:
    for text in (r"\boxed{5} \text{ km}", r"$\boxed{5}$ km."):
        assert verifiers["boxed"].score([text], [r"5\text{ m}"])[0].reason is Reason.UNIT_CONFLICT


@pytest.mark.parametrize(
    "text",
    [
        r"x = \boxed{5}",
        r"$\boxed{5}$.",
        r"**\boxed{5}**",
        r"$\boxed{5}$!",
        r"$\boxed{5}$ **QED**",
        r"$x = \boxed{5}$ * checked",
        r"$\boxed{5}$ > next",
        r"$\boxed{5}$ $\checkmark$",
        r"\boxed{5}\text{ apples}",
        r"\boxed{5} times",
        r"\boxed{5} - which was to be shown",
        r"\boxed{5} (since 2 + 3 = 5)",
        r"- \boxed{5}",
        r"(a) \boxed{5}",
        r"it is a \boxed{5}",
        r"\textbf{\boxed{5}}",
        r"$(\boxed{5})$",
        r"\begin{align} x &= \boxed{5} \\ \end{align}",
        r"\boxed{x = \boxed{5}}",
        r"$\text{Area} = \boxed{5}\qquad\blacksquare$",
    ],
)
def test_other_things_around_a_box_do_not_matter(text: str) -> None:
    assert extract_answer(text) == "5"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{5} or 6",
        r"6 or \boxed{5}",
        r"x=\boxed{5} or x=6",
        r"$\boxed{5}$ or $x = 6$",
        r"\boxed{5}. Actually the answer is 6",
        r"\boxed{5}. Wait, it is 6",
        r"\boxed{5}. The answer is 6.",
        r"\boxed{4}. So \boxed{5}",
        r"It is more than $\boxed{5}$",
        r"It is minus \boxed{5}",
        r"\boxed{4}, no, \boxed{5}",
        r"Could be \boxed{1}. Could be \boxed{2}. Could be \boxed{3}. Could be \boxed{4}. Could be \boxed{5}.",
        "".join(rf"Candidate: \boxed{{{n}}}. Then {'more ' * 100}" for n in range(200, 4, -1)),
    ],
)
def test_another_answer_beside_the_box(verifiers: dict[str, Verifier], text: str) -> None:
    assert verifiers["boxed"].score([text], ["5"])[0].reason is Reason.AMBIGUOUS


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{3} apples at first." + " More follows." * 20 + r" So \boxed{5}",
        r"$\boxed{5}$ or $\frac{10}{2}$",
        r"\boxed{5}. The answer is 5 apples.",
        r"\boxed{5}, that is \boxed{\frac{10}{2}}, or again \boxed{5}",
        "\\boxed{3}\n\nFinal answer:\n\\boxed{5}",
        r"$a = \boxed{2}$, $b = \boxed{3}$, $a + b = \boxed{5}$",
    ],
)
def test_the_same_answer_or_a_step_towards_it(verifiers: dict[str, Verifier], text: str) -> None:
    verdict = verifiers["boxed"].score([text], ["5"])[0]
    assert verdict.correct, verdict


@pytest.mark.parametrize(
    "text",
    ["8 7 6 5", "1\n2\n3\n5", "It is 1. It is 2. It is 3. It is 5.", "Not sure: 1? 2? 3? 5", "x = 1, x = 2, x = 5"],
)
def test_guesses_in_a_row(verifiers: dict[str, Verifier], text: str) -> None:
    assert not verifiers["anywhere"].score([text], ["5"])[0].correct


@pytest.mark.parametrize(
    "text", ["He has 2. She has 3. Together they have 5.", "It is 5. Yes, it is 5.", "2 + 3 = 5", "Add 2\nand 3\n5"]
)
def test_numbers_on_the_way(verifiers: dict[str, Verifier], text: str) -> None:
    assert verifiers["anywhere"].score([text], ["5"])[0].correct


@pytest.mark.parametrize(
    "text",
    [
        r"$-$\boxed{5}",
        r"$-$ $\boxed{5}$",
        r"\(-\) \boxed{5}",
        r"The answer is -$\boxed{5}$",
        r"$x\neq$ \boxed{5}",
        r"$x \ne$ $\boxed{5}$",
        r"x ≠ $\boxed{5}$",
        r"$x>$ \boxed{5}",
        r"x < $\boxed{5}$",
        r"$\pm$\boxed{5}",
        r"$2\cdot$ \boxed{5}",
        r"$10^{3} \times$ \boxed{5}",
        r"\boxed{5}, 6",
        r"$\boxed{5}$ and 6",
        r"$\boxed{5}$, $6$.",
        r"\boxed{5} & 6",
        r"\boxed{5}; 6",
        r"\boxed{5} and \frac{1}{2}.",
        r"The solutions are 4 and \boxed{5}",
        r"4, \boxed{5}",
        r"The answers are $4$, $\boxed{5}$",
        r"\boxed{5}, 6, 7",
        r"$\boxed{5}, 6$",
        r"|\boxed{-6}|",
        r"\boxed{5} and 6 are both solutions",
        r"minus \boxed{5}",
        r"\boxed{-}\boxed{5}",
        r"negative $\boxed{5}$",
        r"the negative of \boxed{5}",
        r"the opposite of \boxed{5}",
        r"$-\left(\boxed{5}\right)$",
        r"$-1 \cdot$ \boxed{5}",
        r"\boxed{5} \text{ and } 6",
        r"$\boxed{5} \text{ and } 6$",
        r"$\boxed{5} \quad 6$",
        r"$\boxed{5}\ 6$",
        r"\boxed{5}/2",
        r"\boxed{5} / 2",
        r"\boxed{5} (or maybe 6)",
        r"square of \boxed{5}",
        r"the square root of $\boxed{5}$",
        r"$\sqrt$\boxed{5}",
        r"\boxed{5} plus 1",
        r"1 + \boxed{5}",
        r"$1 +$ \boxed{5}",
        r"not \boxed{5}",
        r"anything but \boxed{5}",
        r"\boxed{5}?",
    ],
)
def test_an_operator_or_another_value_beside_the_box_counts(verifiers: dict[str, Verifier], text: str) -> None:
    for verifier in verifiers.values():
        assert not verifier.score([text], ["5"])[0].correct


@pytest.mark.parametrize(
    "text",
    [
        r"Answer - $\boxed{5}$",
        r"- $\boxed{5}$",
        r"* \boxed{5}",
        r"> $\boxed{5}$",
        r"|\boxed{5}|",
        r"|\boxed{-5}|",
        r"$|\boxed{5}|$",
        r"| 1 | \boxed{5} |",
        r"$x =$ \boxed{5}",
        r"$x=2+3=$ $\boxed{5}$",
        r"we get $x^2 -$ no; \boxed{5}",
        r"\boxed{5}, where n = 6.",
        r"\boxed{5}, which is prime",
        r"x = \boxed{5}, y = 6",
        r"$1, 3, \boxed{5}$",
        r"$1, 2, 3, 4, \boxed{5}$",
        r"\boxed{5} and 6 is too large",
        r"It is between 4 and 6, so \boxed{5}",
        r"\boxed{5}.",
        r"**\boxed{5}**",
        r"The cost is \$\boxed{5}",
        r"so $x+1=6$ and $x$ is $\boxed{5}$",
        r"2. $\boxed{5}$",
        r"Step 3: $\boxed{5}$",
        r"\(x = 2\) and \(y = \boxed{5}\)",
        r"Part (a) - \boxed{5}",
        r"We need 4, 5 or 6; it is \boxed{5}",
        r"The answers to the first two parts are 4, 6; hence \boxed{5}",
        r"From $\{4,5,6\}$ we pick \boxed{5}, 6 being even",
    ],
)
def test_dashes_bullets_cells_and_other_names_beside_the_box_do_not_count(
    verifiers: dict[str, Verifier], text: str
) -> None:
    for verifier in verifiers.values():
        assert verifier.score([text], ["5"])[0].correct


def test_a_minus_outside_of_the_formula_makes_the_value_negative(verifiers: dict[str, Verifier]) -> None:
    for text in (r"$-$\boxed{5}", r"\(-\) \boxed{5}", r"The answer is -$\boxed{5}$"):
        assert verifiers["boxed"].score([text], ["-5"])[0].correct
    assert verifiers["boxed"].score([r"|\boxed{-5}|"], ["5"])[0].correct
    assert not verifiers["boxed"].score([r"|\boxed{-5}|"], ["-5"])[0].correct
