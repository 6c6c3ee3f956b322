"""What a problem is, and the table of families that make them."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple


@dataclass(frozen=True)
class Problem:
    problem: str
    answer: str
    """An integer, or a fraction in lowest terms: `-\\frac{7}{12}`."""
    solution: str
    """One step a line, then `\\boxed{answer}`: the target of supervised training."""
    family: str
    level: int


class Draft(NamedTuple):
    """What a family function returns; the registry renders it into a `Problem`."""

    problem: str
    answer: int | Fraction
    steps: Sequence[str] = ()
    """Lines of the solution before the boxed answer."""


DrawFunction = Callable[[random.Random, int], Draft]


@dataclass(frozen=True)
class Family:
    name: str
    levels: tuple[int, ...]
    draw: DrawFunction

    def make(self, rng: random.Random, level: int) -> Problem:
        """Draw one problem of `level`, of either split; all randomness comes from `rng`."""
        draft = self.draw(rng, level)
        answer = answer_text(draft.answer)
        solution = "\n".join([*draft.steps, rf"\boxed{{{answer}}}"])
        return Problem(draft.problem, answer, solution, self.name, level)


FAMILIES: dict[str, Family] = {}


def family(name: str, levels: Iterable[int]) -> Callable[[DrawFunction], DrawFunction]:
    """Register the decorated `draw(rng, level) -> Draft` under `name`.

    `draw` computes the answer along with the text, never by reading the text back.

    Raises:
        ValueError: another family has this name, or `levels` is empty.
    """

    def register(draw: DrawFunction) -> DrawFunction:
        if name in FAMILIES:
            raise ValueError(f"there is a problem family {name!r} already; choose another name")
        if not (valid := tuple(sorted(levels))):
            raise ValueError(f"problem family {name!r} has no levels; give at least one")
        FAMILIES[name] = Family(name, valid, draw)
        return draw

    return register


def answer_text(value: int | Fraction) -> str:
    r"""LaTeX of an exact number: `17`, `-3`, `\frac{7}{12}`, `-\frac{7}{12}`."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def operand_text(value: int | Fraction) -> str:
    """A number as the right operand of a step: `5`, `3/4`, `(-5)`."""
    return f"({value})" if value < 0 else str(value)
