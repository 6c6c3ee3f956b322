"""What a problem is, and the table of families that make them."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

Measure = Callable[[str], int]
"""Tokens of a text."""


def utf8_bytes(text: str) -> int:
    """Tokens of a text in the byte-level tokenizer."""
    return len(text.encode())


@dataclass(frozen=True)
class Problem:
    problem: str
    answer: str
    """An integer, a fraction in lowest terms (`-\\frac{7}{12}`), a text, or texts joined by ", "."""
    solution: str
    """One step a line, then `\\boxed{answer}`: the target of supervised training."""
    family: str
    level: int
    unordered: bool = False
    """The answer is a set of texts, right in any order."""


class Draft(NamedTuple):
    """What a family function returns; the registry renders it into a `Problem`."""

    problem: str
    answer: int | Fraction | str | Sequence[str]
    """Several texts are a set: the solution has them in this order, and any other is as right."""
    steps: Sequence[str] = ()
    """Lines of the solution before the boxed answer."""


class Size(NamedTuple):
    """How long the text of a problem is to be."""

    tokens: int
    measure: Measure


DrawFunction = Callable[[random.Random, int], Draft]
SizedDrawFunction = Callable[[random.Random, int, Size], Draft]


@dataclass(frozen=True)
class Family:
    name: str
    levels: tuple[int, ...]
    draw: DrawFunction | None = None
    draw_sized: SizedDrawFunction | None = None
    """In place of `draw`, of a family whose problems have a length."""

    def make(self, rng: random.Random, level: int, size: Size | None = None) -> Problem:
        """Draw one problem of `level`, of either split; all randomness comes from `rng`.

        Args:
            size: given to a family whose problems have a length, and to no other.

        Raises:
            ValueError: no problem of this level is of this size.
        """
        if self.draw_sized is not None:
            assert size is not None  # ProblemSource sees to it
            draft = self.draw_sized(rng, level, size)
        else:
            assert self.draw is not None
            draft = self.draw(rng, level)
        answer = answer_text(draft.answer)
        solution = "\n".join([*draft.steps, rf"\boxed{{{answer}}}"])
        unordered = not isinstance(draft.answer, int | Fraction | str)
        return Problem(draft.problem, answer, solution, self.name, level, unordered)


FAMILIES: dict[str, Family] = {}


def family(name: str, levels: Iterable[int]) -> Callable[[DrawFunction], DrawFunction]:
    """Register the decorated `draw(rng, level) -> Draft` under `name`.

    `draw` computes the answer along with the text, never by reading the text back.

    Raises:
        ValueError: another family has this name, or `levels` is empty.
    """

    def register(draw: DrawFunction) -> DrawFunction:
        _add(Family(name, tuple(sorted(levels)), draw))
        return draw

    return register


def sized_family(name: str, levels: Iterable[int]) -> Callable[[SizedDrawFunction], SizedDrawFunction]:
    """Register the decorated `draw(rng, level, size) -> Draft`, whose problems are as long as they are asked to be.

    Raises:
        ValueError: as `family`. (`draw` itself raises one for a size that is too small or too large.)
    """

    def register(draw: SizedDrawFunction) -> SizedDrawFunction:
        _add(Family(name, tuple(sorted(levels)), draw_sized=draw))
        return draw

    return register


def _add(new: Family) -> None:
    if new.name in FAMILIES:
        raise ValueError(f"there is a problem family {new.name!r} already; choose another name")
    if not new.levels:
        raise ValueError(f"problem family {new.name!r} has no levels; give at least one")
    FAMILIES[new.name] = new


def answer_text(value: int | Fraction | str | Sequence[str]) -> str:
    r"""LaTeX of an exact number: `17`, `-3`, `\frac{7}{12}`, `-\frac{7}{12}`; a text as it is; texts joined by ", "."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(value)
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def operand_text(value: int | Fraction) -> str:
    """A number as the right operand of a step: `5`, `3/4`, `(-5)`."""
    return f"({value})" if value < 0 else str(value)
