"""The many ways to write one number, polynomial or interval; for the pairs of `verifier_pairs.py`."""

import random
from collections.abc import Sequence
from fractions import Fraction

Draw = tuple[str, str, str]
"""A gold, an answer equal to it, and one that is not."""


class Hand:
    """Writes values as one of the hands that write answers does, at random."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def integer(self, low: int, high: int) -> int:
        """An integer of a range, which is not 0."""
        return self.rng.choice([n for n in range(low, high + 1) if n != 0])

    def rational(self) -> Fraction:
        """A rational number, half of them integers, some large."""
        kind = self.rng.random()
        if kind < 0.4:
            return Fraction(self.rng.randint(-50, 50))
        if kind < 0.5:
            return Fraction(self.rng.randint(1_000, 9_999_999))
        return Fraction(self.rng.randint(-60, 60), self.rng.randint(2, 12))

    def distinct(self, count: int) -> list[Fraction]:
        """Different rational numbers."""
        found: list[Fraction] = []
        while len(found) < count:
            value = self.rational()
            if value not in found:
                found.append(value)
        return found

    def grouped(self, value: int) -> str:
        """An integer, its thousands separated perhaps."""
        return f"{value:,}".replace(",", self.pick(",", "{,}", r"\,", r",\!", ""))

    def other(self, value: Fraction) -> Fraction:
        """A number close to ``value`` in one way or another, and not it."""
        near = [value + 1, value - 1, value + Fraction(1, 1_000), 2 * value, 10 * value, -value, value / 2]
        if value:
            near.append(1 / value)
        return self.rng.choice([v for v in near if v != value])

    def number(self, value: Fraction | int) -> str:
        """``value`` exactly, a decimal perhaps."""
        value = Fraction(value)
        if 10**6 % value.denominator == 0 and value.denominator > 1 and self.rng.random() < 0.3:
            return decimal(value)
        return self.exact(value)

    def exact(self, value: Fraction | int) -> str:
        """As an integer, fraction or mixed number: as gold, a decimal would stand for all that is rounded to it."""
        value = Fraction(value)
        sign, size = ("-" if value < 0 else ""), abs(value)
        if size.denominator == 1:
            return f"{sign}{size}"
        numerator, denominator = size.numerator, size.denominator
        if size > 1 and self.rng.random() < 0.15:
            whole, rest = divmod(numerator, denominator)
            return rf"{sign}{whole}\frac{{{rest}}}{{{denominator}}}"
        if self.rng.random() < 0.2:
            scale = self.rng.randint(2, 6)
            numerator, denominator = numerator * scale, denominator * scale
        return self.pick(
            rf"{sign}\frac{{{numerator}}}{{{denominator}}}",
            rf"{sign}\dfrac{{{numerator}}}{{{denominator}}}",
            rf"\frac{{{sign}{numerator}}}{{{denominator}}}",
            rf"{sign}\tfrac {{{numerator}}} {{{denominator}}}",
            f"{sign}{numerator}/{denominator}",
        )

    def polynomial(self, coefficients: Sequence[Fraction | int], name: str = "x") -> str:
        """The sum of ``coefficients[k] * name^k``, highest power first or in any order."""
        powers = [k for k in range(len(coefficients) - 1, -1, -1) if coefficients[k] != 0]
        if self.rng.random() < 0.3:
            self.rng.shuffle(powers)
        text = ""
        for k in powers:
            c = Fraction(coefficients[k])
            sign = "-" if c < 0 else "+" if text else ""
            if text and self.rng.random() < 0.7:
                sign = f" {sign} "
            size = "" if abs(c) == 1 and k else _coefficient(abs(c))
            text += sign + size + ("" if k == 0 else name if k == 1 else f"{name}^{{{k}}}")
        return text or "0"

    def linear(self, root: Fraction, name: str = "x") -> str:
        """``name - root``."""
        return self.polynomial([-root, 1], name)

    def interval(self, low: Fraction | None, high: Fraction | None, open_low: bool, open_high: bool) -> str:
        """An interval; None is an infinite end, which is open."""
        left = r"-\infty" if low is None else self.exact(low)
        right = self.pick(r"\infty", r"+\infty") if high is None else self.exact(high)
        opening, closing = ("(" if open_low else "["), (")" if open_high else "]")
        if self.rng.random() < 0.3:
            opening, closing = rf"\left{opening}", rf"\right{closing}"
        return f"{opening}{left}, {right}{closing}"

    def inequality(
        self, name: str, low: Fraction | None, high: Fraction | None, open_low: bool, open_high: bool
    ) -> str:
        """The same set as a condition on ``name``. At least one end is finite."""
        ascending = [self._less(open_low), self._less(open_high)]
        descending = [self._more(open_low), self._more(open_high)]
        if low is None and high is not None:
            return self.pick(f"{name}{ascending[1]}{self.exact(high)}", f"{self.exact(high)}{descending[1]}{name}")
        if high is None and low is not None:
            return self.pick(f"{name}{descending[0]}{self.exact(low)}", f"{self.exact(low)}{ascending[0]}{name}")
        assert low is not None
        assert high is not None
        return self.pick(
            f"{self.exact(low)}{ascending[0]}{name}{ascending[1]}{self.exact(high)}",
            f"{self.exact(high)}{descending[1]}{name}{descending[0]}{self.exact(low)}",
        )

    def _less(self, strict: bool) -> str:
        return self.pick(" < ", r" \lt ") if strict else self.pick(r" \le ", r" \leq ", " <= ", r" \leqslant ")

    def _more(self, strict: bool) -> str:
        return self.pick(" > ", r" \gt ") if strict else self.pick(r" \ge ", r" \geq ", " >= ", r" \geqslant ")


def _coefficient(size: Fraction) -> str:
    return str(size.numerator) if size.denominator == 1 else rf"\frac{{{size.numerator}}}{{{size.denominator}}}"


def decimal(value: Fraction) -> str:
    """A rational number whose decimals end, with all of them."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    return rounded(value, digits)


def rounded(value: Fraction, digits: int) -> str:
    """``value`` to so many decimals."""
    units = round(abs(value) * 10**digits)
    text = str(units).rjust(digits + 1, "0")
    point = f"{text[:-digits]}.{text[-digits:]}" if digits else text
    return ("-" if value < 0 and units else "") + point


def times(*polynomials: Sequence[Fraction | int]) -> list[Fraction]:
    """The coefficients of a product."""
    product = [Fraction(1)]
    for factor in polynomials:
        result = [Fraction(0)] * (len(product) + len(factor) - 1)
        for i, a in enumerate(product):
            for j, b in enumerate(factor):
                result[i + j] += a * b
        product = result
    return product


def mistaken(h: Hand, gold: str) -> str:
    """Another value: ``gold`` with something added, a factor, or the other sign. Never 0."""
    return h.pick(
        f"{gold} + {h.rng.randint(1, 9)}", f"-({gold})", f"{h.rng.randint(2, 5)}({gold})", f"\\frac{{{gold}}}{{2}}"
    )
