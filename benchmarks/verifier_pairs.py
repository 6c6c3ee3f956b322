"""Random pairs of a gold and an answer that are equal, or differ, by construction: one function for each kind.

Each function draws a gold, an answer equal to it in other writing, and one that a mistake would lead to.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from verifier_spelling import Hand, decimal, rounded, times

Draw = tuple[str, str, str]
"""A gold, an answer equal to it, and one that is not."""


@dataclass(frozen=True)
class RandomPair:
    kind: str
    gold: str
    pred: str
    right: bool


def random_pairs(count: int, seed: int) -> list[RandomPair]:
    """``count`` pairs, half of them right, of all kinds in turn. The same for the same seed."""
    hand = Hand(random.Random(seed))
    pairs: list[RandomPair] = []
    while len(pairs) < count:
        for kind, draw in KINDS.items():
            gold, right, wrong = draw(hand)
            pairs += [RandomPair(kind, gold, right, True), RandomPair(kind, gold, wrong, False)]
    return pairs[:count]


def integer(h: Hand) -> Draw:
    n = h.integer(-99_999, 99_999) if h.rng.random() < 0.5 else h.integer(-99, 99)
    right = h.pick(h.grouped(n), h.grouped(n), rf"\frac{{{2 * n}}}{{2}}", rf"{n}\,", f"${n}$", f"{n}.", f"{n}.0")
    return h.grouped(n), right, h.number(h.other(Fraction(n)))


def fraction(h: Hand) -> Draw:
    value = Fraction(h.integer(-60, 60), h.rng.randint(2, 40))
    wrong = rounded(value, 2) if value * 100 % 1 and h.rng.random() < 0.3 else h.number(h.other(value))
    return h.exact(value), h.number(value), wrong


def decimals(h: Hand) -> Draw:
    places = h.rng.randint(1, 4)
    unit = Fraction(1, 10**places)
    value = h.integer(-9_999, 9_999) * unit
    gold = rounded(value, places)
    right = h.pick(gold, h.number(value), gold + "0", f"{rounded(value * 10, places)} / 10")
    wrong = h.rng.choice([value + unit, value - unit, value * 10, -value, value + 2 * unit])
    return gold, right, rounded(wrong, places)


def rounded_value(h: Hand) -> Draw:
    a, b, places = h.rng.randint(2, 40), h.rng.randint(2, 40), h.rng.randint(2, 4)
    value, exact = h.rng.choice(
        [
            (math.sqrt(a * a + 1), rf"\sqrt{{{a * a + 1}}}"),
            (a * math.pi / b, rf"\frac{{{a}\pi}}{{{b}}}"),
            (math.log(a), rf"\ln {a}"),
            (a / 7 + b, rf"\frac{{{a + 7 * b}}}{{7}}"),
        ]
    )
    wrong = h.pick(f"{value + h.rng.choice([-2, 2, 10]) * 10.0**-places:.{places}f}", f"{value:.{places + 2}f}")
    units = value * 10**places
    if units < 100 or abs(units % 1 - 0.5) < 0.01 or abs(units - round(units)) < 1e-9:
        return rounded_value(h)  # too few digits to be a rounded value, a tie, or an exact value
    if float(wrong) == round(value, places):
        return rounded_value(h)
    return f"{value:.{places}f}", h.pick(exact, f"{value:.{places}f}"), wrong


def repeating(h: Hand) -> Draw:
    period = h.rng.randint(1, 98)
    value = Fraction(period, 99)
    return h.exact(value), rf"0.\overline{{{period:02d}}}", h.pick(decimal(Fraction(period, 100)), rounded(value, 3))


def percent(h: Hand) -> Draw:
    n = h.rng.randint(2, 300)
    value = Fraction(n, 100)
    right = h.pick(rf"{n} \%", f"{n}%", decimal(value), h.number(value), rf"{n}.0\%")
    return rf"{n}\%", right, h.pick(rf"{n + 1}\%", rf"{10 * n}\%", decimal(value / 10), str(10 * n))


def scientific(h: Hand) -> Draw:
    digits, power = h.rng.randint(11, 99), h.rng.randint(3, 12)
    value = digits * 10 ** (power - 1)
    gold = rf"{digits // 10}.{digits % 10} \times 10^{{{power}}}"
    right = h.pick(f"{digits // 10}.{digits % 10}e{power}", rf"{digits} \cdot 10^{{{power - 1}}}", str(value))
    return (
        gold,
        right,
        h.pick(str(value + 1_000_000_000_000), f"{digits}e{power}", rf"{digits} \cdot 10^{{{power + 1}}}"),
    )


def surd(h: Hand) -> Draw:
    a, b, root = h.rng.randint(2, 12), h.rng.randint(2, 9), h.rng.choice([2, 3, 5, 6, 7, 10])
    gold, right = h.rng.choice(
        [
            (rf"{a}\sqrt{{{root}}}", rf"\sqrt{{{a * a * root}}}"),
            (rf"\frac{{{a}\sqrt{{{root}}}}}{{{root}}}", rf"\frac{{{a}}}{{\sqrt{{{root}}}}}"),
            (rf"{a} + {b}\sqrt{{{root}}}", rf"\sqrt{{{b * b * root}}} + {a}"),
            (rf"\frac{{{a} + \sqrt{{{root}}}}}{{{b}}}", rf"\frac{{{a}}}{{{b}}} + \frac{{\sqrt{{{root}}}}}{{{b}}}"),
            (rf"({a} + \sqrt{{{root}}})^2", rf"{a * a + root} + {2 * a}\sqrt{{{root}}}"),
            (rf"\sqrt[3]{{{a**3 * root}}}", rf"{a} \cdot {root}^{{1/3}}"),
        ]
    )
    return gold, h.pick(gold, right, right), _mistaken(h, gold)


def pi_multiple(h: Hand) -> Draw:
    a, b = h.rng.randint(2, 40), h.rng.randint(2, 12)
    gold = rf"\frac{{{a}\pi}}{{{b}}}"
    right = h.pick(rf"\frac{{{a}}}{{{b}}}\pi", rf"\pi \cdot \frac{{{2 * a}}}{{{2 * b}}}", rf"{a}\pi/{b}")
    return (
        gold,
        right,
        h.pick(rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a}\pi}}{{{b + 1}}}", rounded(Fraction(math.pi) * a / b, 2)),
    )


def power_or_log(h: Hand) -> Draw:
    base, k = h.rng.choice([2, 3, 5, 10]), h.rng.randint(2, 9)
    j = k + h.rng.choice([-1, 1, 2])
    return h.rng.choice(
        [
            (rf"{base}^{{{k}}}", str(base**k), str(base**j)),
            (str(k), rf"\log_{{{base}}} {base**k}", rf"\log_{{{base}}} {base**j}"),
            (rf"e^{{{k}}}", rf"e^2 \cdot e^{{{k - 2}}}", rf"e^2 + e^{{{j}}}"),
            (rf"{k}\ln {base}", rf"\ln {base**k}", rf"\ln {base * k + 1}"),
            (rf"\frac{{1}}{{{base**k}}}", rf"{base}^{{-{k}}}", rf"-{base}^{{{k}}}"),
            (rf"{base}^{{{1000 + k}}}", rf"{base} \cdot {base}^{{{999 + k}}}", rf"{base}^{{{1000 + j}}}"),
        ]
    )


def counting(h: Hand) -> Draw:
    n = h.rng.randint(4, 12)
    k = h.rng.randint(2, n - 2)
    value = math.comb(n, k)
    return h.rng.choice(
        [
            (str(value), rf"\binom{{{n}}}{{{k}}}", rf"\binom{{{n + 1}}}{{{k}}}"),
            (rf"\binom{{{n}}}{{{k}}}", rf"\frac{{{n}!}}{{{k}! \cdot {n - k}!}}", str(value + 1)),
            (f"{n}!", str(math.factorial(n)), str(math.factorial(n - 1))),
        ]
    )


def absolute_value(h: Hand) -> Draw:
    a = h.rng.choice([h.rng.randint(1, 20), h.rng.randint(100, 5_000_000)])
    gold = rf"|x + {a}|"
    right = h.pick(rf"\left|{a} + x\right|", rf"\sqrt{{(x + {a})^2}}", rf"|-x - {a}|")
    return gold, right, h.pick(f"x + {a}", f"|x| + {a}", f"|x - {a}|", f"-x - {a}")


def complex_number(h: Hand) -> Draw:
    a, b, c, d = (h.integer(-9, 9) for _ in range(4))
    real, imaginary = a * c - b * d, a * d + b * c
    if imaginary == 0:
        return complex_number(h)
    gold = h.polynomial([real, imaginary], "i")
    right = h.pick(h.polynomial([real, imaginary], "i"), f"({h.polynomial([a, b], 'i')})({h.polynomial([c, d], 'i')})")
    return gold, right, h.polynomial(h.rng.choice([[real, -imaginary], [real + 1, imaginary]]), "i")


def polynomial(h: Hand) -> Draw:
    name = h.pick("x", "y", "t", "n", "a", "k", r"\theta", "x_{1}")
    roots = [Fraction(h.integer(-9, 9)) for _ in range(h.rng.randint(2, 4))]
    scale = Fraction(h.integer(-4, 4))
    coefficients = times([scale], *([-root, Fraction(1)] for root in roots))
    factored = f"{h.number(scale)}" + "".join(f"({h.linear(root, name)})" for root in roots)
    right = h.pick(h.polynomial(coefficients, name), factored)
    changed = list(coefficients)
    changed[h.rng.randrange(len(changed))] += h.integer(-2, 2)
    return h.polynomial(coefficients, name), right, h.polynomial(changed, name)


def rational_function(h: Hand) -> Draw:
    a, b = (Fraction(n) for n in h.rng.sample([n for n in range(-9, 10) if n], 2))
    p, q = Fraction(h.integer(-5, 5)), Fraction(h.integer(-5, 5))
    top = h.polynomial([-(p * b + q * a), p + q])
    bottom = h.pick(f"({h.linear(a)})({h.linear(b)})", h.polynomial(times([-a, 1], [-b, 1])))
    gold = rf"\frac{{{top}}}{{{bottom}}}"
    parts = rf"\frac{{{p}}}{{{h.linear(a)}}} + \frac{{{q}}}{{{h.linear(b)}}}"
    wrong = h.pick(parts.replace(" + ", " - "), rf"\frac{{{p}}}{{{h.linear(b)}}} + \frac{{{q + 1}}}{{{h.linear(a)}}}")
    return gold, h.pick(parts, gold.replace("frac", "dfrac")), wrong


def trigonometric(h: Hand) -> Draw:
    a, u = h.rng.randint(2, 9), h.pick("x", "t", r"\theta", r"\alpha")
    gold, right = h.rng.choice(
        [
            (rf"{a}\sin 2{u}", rf"{2 * a}\sin {u}\cos {u}"),
            (rf"\sin^2 {u} + {a}", rf"{a + 1} - \cos^2({u})"),
            (rf"{a}\tan {u}", rf"\frac{{{a}\sin {u}}}{{\cos {u}}}"),
            (rf"{a} \cos(2{u})", rf"{a} - {2 * a}\sin^2 {u}"),
            (rf"\frac{{{a}}}{{\cos {u}}}", rf"{a}\sec {u}"),
            (rf"e^{{{a}{u}}} + 1", rf"1 + (e^{{{u}}})^{{{a}}}"),
            (rf"{a}\sin {u} + {a}\cos {u}", rf"{a}(\cos({u}) + \sin({u}))"),
        ]
    )
    return gold, right, _mistaken(h, gold)


def formula(h: Hand) -> Draw:
    a = h.rng.randint(2, 9)
    return h.rng.choice(
        [
            (rf"{a}\pi r h", rf"{a} \pi \cdot h \cdot r", rf"{a}\pi r"),
            (r"\frac{m v^2}{r}", r"m \cdot \frac{v^2}{r}", r"\frac{m v}{r}"),
            (r"\frac{m v^2}{R}", r"\frac{m v^{2}}{R}", r"\frac{m v^2}{r}"),
            (r"\sqrt{\frac{2 h}{g}}", r"(\frac{2h}{g})^{1/2}", r"\sqrt{\frac{h}{2g}}"),
            (rf"x_1 + {a} x_2", rf"{a} x_{{2}} + x_{{1}}", rf"x_2 + {a} x_1"),
            (rf"\frac{{{a}}}{{x^2}}", rf"{a} x^{{-2}}", rf"{a} x^2"),
            (rf"(a+b)^2 - {a}", rf"a^2 + 2ab + b^2 - {a}", rf"a^2 + b^2 - {a}"),
            (rf"\pi R^2 - \pi r^2 + {a}", rf"\pi (R - r)(R + r) + {a}", str(a)),
            (rf"{a} \cdot 2^n", rf"2^{{n-1}} \cdot {2 * a}", rf"{2 * a}^n"),
            (rf"\frac{{n(n+{a})}}{{2}}", rf"\frac{{n^2 + {a}n}}{{2}}", rf"\frac{{n^2 + {a}}}{{2}}"),
        ]
    )


def equation(h: Hand) -> Draw:
    a, b, c = h.rng.randint(2, 9), h.rng.randint(2, 9), h.rng.randint(1, 30)
    k = h.rng.choice([-3, -1, 2, 5])
    gold = f"{a}x + {b}y = {c}"
    right = h.pick(
        f"{h.polynomial([0, k * a])} {'+' if k > 0 else '-'} {abs(k) * b}y = {k * c}",
        f"{a}x + {b}y - {c} = 0",
        f"{b}y = {c} - {a}x",
        rf"y = \frac{{{c} - {a}x}}{{{b}}}",
    )
    return (
        gold,
        right,
        h.pick(f"{a}x + {b}y = {c + 1}", f"{a}x - {b}y = {c}", f"{a}x + {b}y = 0", f"{a}y + {b + a}x = {c}"),
    )


def assigned(h: Hand) -> Draw:
    value, name = h.rational(), h.pick("x", "y", "n", "m", "k")
    sides = [h.exact(value), f"{name} = {h.exact(value)}"]
    gold, right = h.rng.sample(sides, 2)
    return gold, right, h.pick(f"{name} = {h.number(h.other(value))}", h.number(h.other(value)))


def named_values(h: Hand) -> Draw:
    a, b = h.distinct(2)
    gold = f"x = {h.exact(a)}, y = {h.exact(b)}"
    right = h.pick(f"y = {h.number(b)}, x = {h.number(a)}", rf"x={h.number(a)} \text{{ and }} y={h.number(b)}")
    return (
        gold,
        right,
        h.pick(f"x = {h.number(b)}, y = {h.number(a)}", f"x = {h.number(a)}, y = {h.number(h.other(b))}"),
    )


def interval(h: Hand) -> Draw:
    low, high = sorted(h.distinct(2))
    ends: tuple[Fraction | None, Fraction | None] = h.rng.choice([(low, high), (low, high), (None, high), (low, None)])
    opens = h.rng.random() < 0.5 or ends[0] is None, h.rng.random() < 0.5 or ends[1] is None
    name = h.pick("x", "t", "m")
    forms: list[Callable[..., str]] = [
        h.interval,
        lambda *e: h.inequality(name, *e),
        lambda *e: rf"{name} \in {h.interval(*e)}",
        lambda *e: rf"\{{{name} \mid {h.inequality(name, *e)}\}}",
    ]
    if ends[0] is None or ends[1] is None:
        moved = tuple(None if end is None else end + 1 for end in ends)
        flipped = tuple(end is None or not is_open for end, is_open in zip(ends, opens, strict=True))
        changed = h.rng.choice([(*moved, *opens), (*ends, *flipped)])
    else:
        changed = h.rng.choice(
            [(low, high, not opens[0], opens[1]), (low, high, opens[0], not opens[1]), (low - 1, high, *opens)]
        )
    return h.rng.choice(forms)(*ends, *opens), h.rng.choice(forms)(*ends, *opens), h.rng.choice(forms)(*changed)


def union(h: Hand) -> Draw:
    a, b, c, d = sorted(h.distinct(4))
    left, right_half = h.interval(a, b, False, True), h.interval(c, d, True, False)
    gold = rf"{left} \cup {right_half}"
    right = h.pick(
        rf"{right_half} \cup {left}",
        rf"{h.inequality('x', a, b, False, True)} \text{{ or }} {h.inequality('x', c, d, True, False)}",
    )
    wrong = h.pick(rf"{left} \cup {h.interval(c, d, True, True)}", h.interval(a, d, False, False), left)
    return gold, right, wrong


def finite_set(h: Hand) -> Draw:
    values = h.distinct(h.rng.randint(2, 5))
    shuffled = h.rng.sample(values, len(values))
    changed = h.rng.choice([shuffled[1:], [*shuffled, max(values) + 1], [*shuffled[1:], min(values) - 1]])
    braces = h.rng.choice([(r"\{", r"\}"), (r"\left\{", r"\right\}")])
    return _gold(h, values, r"\{", r"\}"), _joined(h, shuffled, *braces), _joined(h, changed, *braces)


def list_of_values(h: Hand) -> Draw:
    values = h.distinct(h.rng.randint(2, 4))
    shuffled = h.rng.sample(values, len(values))
    last = h.pick(", ", r" \text{ and } ", r"\text{ or }") + h.number(shuffled[-1])
    changed = h.rng.choice([shuffled[1:], [*shuffled, max(values) + 1], [min(values) - 1, *shuffled[1:]]])
    return _gold(h, values, "", ""), _joined(h, shuffled[:-1], "", last), _joined(h, changed, "", "")


def plus_minus(h: Hand) -> Draw:
    a, root = h.rng.randint(1, 9), h.rng.choice([2, 3, 5, 7])
    gold = rf"{a} \pm \sqrt{{{root}}}"
    right = rf"{a} + \sqrt{{{root}}}, {a} - \sqrt{{{root}}}"
    wrong = h.pick(
        rf"{a} + \sqrt{{{root}}}", rf"{a + 1} \pm \sqrt{{{root}}}", rf"{a} + \sqrt{{{root}}}, \sqrt{{{root}}} - {a}"
    )
    return gold, right, wrong


def point(h: Hand) -> Draw:
    values = h.distinct(h.rng.randint(2, 4))
    changed = h.rng.choice([values[::-1], [*values[:-1], h.other(values[-1])], values + values[:1]])
    braces = h.rng.choice([("(", ")"), (r"\left(", r"\right)")])
    return _gold(h, values, "(", ")"), _joined(h, values, *braces), _joined(h, changed, *braces)


def matrix(h: Hand) -> Draw:
    rows, columns = h.rng.randint(2, 3), h.rng.randint(2, 3)
    values = [[h.rational() for _ in range(columns)] for _ in range(rows)]
    changed = [list(row) for row in values]
    i, j = h.rng.randrange(rows), h.rng.randrange(columns)
    changed[i][j] = h.other(changed[i][j])

    def write(entries: list[list[Fraction]], number: Callable[[Fraction], str]) -> str:
        kind = h.pick("pmatrix", "bmatrix")
        body = r" \\ ".join(" & ".join(map(number, row)) for row in entries)
        return rf"\begin{{{kind}}} {body} \end{{{kind}}}"

    return write(values, h.exact), write(values, h.number), write(changed, h.number)


def unit(h: Hand) -> Draw:
    n = h.rng.randint(2, 500)
    big, small, factor = h.rng.choice(
        [("m", "cm", 100), ("km", "m", 1_000), ("kg", "g", 1_000), ("hours", "minutes", 60), ("minutes", "seconds", 60)]
    )
    right = h.pick(rf"{n * factor} \text{{ {small}}}", rf"{n}\,\text{{{big}}}", rf"{n} \mathrm{{~{big}}}", str(n))
    return (
        rf"{n} \text{{ {big}}}",
        right,
        h.pick(rf"{n} \text{{ {small}}}", rf"{n + 1} \text{{ {big}}}", str(n * factor)),
    )


def money(h: Hand) -> Draw:
    n = h.rng.randint(2, 5_000)
    right = h.pick(rf"\${h.grouped(n)}", str(n), rf"\${n}.00", rf"{n} \text{{ dollars}}")
    return rf"\${n}", right, h.pick(rf"\${n + 1}", rf"\${n}.50", rf"{n}\%", rf"{n} \text{{ cents}}")


def angle(h: Hand) -> Draw:
    n = h.rng.randint(2, 359)
    right = h.pick(rf"{n}^{{\circ}}", rf"{n} \text{{ degrees}}", rf"{n}\degree", str(n))
    return rf"{n}^\circ", right, h.pick(rf"{n + 1}^\circ", rf"{n}\pi", rf"-{n}^\circ")


def based(h: Hand) -> Draw:
    base, n = h.rng.choice([2, 3, 5, 8]), h.rng.randint(9, 300)
    digits = _in_base(n, base)
    gold = f"{digits}_{base}"
    return gold, f"{digits}_{{{base}}}", h.pick(f"{digits}_{base + 1}", f"{_in_base(n + 1, base)}_{base}")


def ratio(h: Hand) -> Draw:
    a, b = h.rng.sample(range(2, 10), 2)  # with two digits after the colon it may be a time of day
    k = h.rng.randint(2, 5)
    return f"{a}:{b}", h.pick(f"{k * a}:{k * b}", f"{a} : {b}"), h.pick(f"{b}:{a}", f"{a}:{b + 1}", f"{a}:{b}:1")


def words(h: Hand) -> Draw:
    gold, other = h.rng.sample(
        ["east", "seat", "north", "yes", "no", "odd", "even", "Tuesday", "Monday", "red", "Evelyn"], 2
    )
    right = h.pick(
        rf"\text{{{gold}}}", rf"\text{{{gold.capitalize()}}}", gold, rf"\text{{ {gold}.}}", rf"\textbf{{{gold}}}"
    )
    return rf"\text{{{gold}}}", right, rf"\text{{{other}}}"


def choice(h: Hand) -> Draw:
    gold, other = h.rng.sample("ABCDE", 2)
    right = h.pick(
        gold, f"({gold})", rf"\text{{({gold})}}", rf"\textbf{{{gold}}}", rf"\mathrm{{{gold}}}", rf"\text{{{gold}}}"
    )
    return rf"\text{{({gold})}}", right, h.pick(rf"\text{{({other})}}", other, f"{gold}, {other}")


def compound_unit(h: Hand) -> Draw:
    large, small, factor = h.rng.choice(
        [("ft", "in", 12), ("hours", "minutes", 60), ("lb", "oz", 16), ("m", "cm", 100)]
    )
    a, b = h.rng.randint(1, 30), h.rng.randint(1, factor - 1)
    gold = rf"{a}\text{{ {large} }}{b}\text{{ {small}}}"
    right = h.pick(rf"{a * factor + b}\text{{ {small}}}", f"{a} {large} {b} {small}" if large != "m" else gold)
    wrong = h.pick(
        rf"{a}\text{{ {large} }}{b - 1}\text{{ {small}}}", rf"{a + b}\text{{ {small}}}", rf"{a}\text{{ {large}}}"
    )
    return gold, right, wrong


def date(h: Hand) -> Draw:
    months = ["January", "February", "March", "April", "June", "July", "August", "October", "December"]
    (month, other), day = h.rng.sample(months, 2), h.rng.randint(1, 28)
    right = h.pick(
        f"{month} {day}", rf"\text{{{month[:3]}. {day}}}", rf"\text{{{day} {month}}}", rf"\text{{{month} }}{day}"
    )
    wrong = h.pick(rf"\text{{{other} {day}}}", rf"\text{{{month} {day + 1}}}", rf"\text{{{month}}}", str(day))
    return rf"\text{{{month} {day}}}", right, wrong


def clock(h: Hand) -> Draw:
    hour, minute, half = h.rng.randint(1, 11), h.rng.randint(1, 58), h.pick("a.m.", "p.m.")
    short = half.replace(".", "")
    right = h.pick(f"{hour}:{minute:02d} {short.upper()}", rf"\text{{{hour}:{minute:02d} {half}}}")
    other = "p.m." if half == "a.m." else "a.m."
    wrong = h.pick(f"{hour}:{minute + 1:02d} {half}", f"{hour}:{minute:02d} {other}", f"{hour + 1}:{minute:02d} {half}")
    return rf"{hour}:{minute:02d}\text{{ {half}}}", right, wrong


def unit_vector(h: Hand) -> Draw:
    a, b, c = (h.integer(-9, 9) for _ in range(3))
    styles = (r"\mathbf{%s}", r"\hat{%s}", r"\hat %s", r"\vec{%s}", r"\hat{\mathbf{%s}}", r"\boldsymbol{%s}")

    def write(values: tuple[int, int, int], style: str) -> str:
        return " ".join(
            f"{'+' if v > 0 else '-'} {abs(v)}{style % n}" for v, n in zip(values, "ijk", strict=True)
        ).lstrip("+ ")

    wrong = h.rng.choice([(a, b, -c), (b + 10, a, c), (a, b + 1, c)])
    return write((a, b, c), h.pick(*styles)), write((a, b, c), h.pick(*styles)), write(wrong, h.pick(*styles))


def residue(h: Hand) -> Draw:
    modulus = h.rng.randint(5, 20)
    rest = h.rng.randint(0, modulus - 1)
    gold = rf"{rest} \pmod{{{modulus}}}"
    right = h.pick(
        rf"{rest + modulus} \pmod {{{modulus}}}", rf"x \equiv {rest} \pmod{{{modulus}}}", f"{rest} (mod {modulus})"
    )
    wrong = h.pick(
        rf"{rest + 1} \pmod{{{modulus}}}", rf"{rest} \pmod{{{modulus + 1}}}", rf"{rest + modulus + 1} (\bmod {modulus})"
    )
    return gold, right, wrong


def chance(h: Hand) -> Draw:
    n = h.rng.randint(3, 60)
    k = h.rng.randint(1, n - 1)
    right = h.pick(
        rf"{k}\text{{ out of }}{n}", rf"P(A) = \frac{{{k}}}{{{n}}}", rf"P = {k}/{n}", rf"\frac{{{2 * k}}}{{{2 * n}}}"
    )
    return (
        rf"\frac{{{k}}}{{{n}}}",
        right,
        h.pick(rf"\frac{{{k}}}{{{n + 1}}}", rf"\frac{{{n}}}{{{k}}}", rf"\frac{{{k + n}}}{{{n}}}"),
    )


def spelled_count(h: Hand) -> Draw:
    n = h.rng.randint(5, 12)
    k = h.rng.randint(2, n - 2)
    forms = (r"\binom{%d}{%d}", "C(%d, %d)", "_{%d}C_{%d}", r"{}_{%d}C_{%d}", r"C_{%d}^{%d}", r"{%d \choose %d}")
    return str(math.comb(n, k)), h.pick(*forms) % (n, k), h.pick(*forms) % (n + 1, k)


def endless_decimal(h: Hand) -> Draw:
    digits = str(h.rng.randint(1, 8)) if h.rng.random() < 0.5 else f"{h.rng.choice([12, 27, 36, 45, 63, 81]):02d}"
    value = Fraction(int(digits), 10 ** len(digits) - 1)
    right = h.pick(rf"0.{digits * 3}\ldots", f"0.{digits * 4}...", rf"0.\overline{{{digits}}}", rf"0.({digits})")
    return h.exact(value), right, h.pick(f"0.{digits * 3}", rf"0.{digits * 2}9\ldots", rf"0.0{digits * 3}\ldots")


def turned_bracket(h: Hand) -> Draw:
    low, high = sorted(h.distinct(2))
    gold = h.interval(low, high, True, False)
    right = f"]{h.exact(low)}, {h.exact(high)}]"
    wrong = h.pick(
        f"]{h.exact(low)}, {h.exact(high)}[", f"[{h.exact(low)}, {h.exact(high)}]", f"]{h.exact(high)}, {h.exact(low)}]"
    )
    return gold, right, wrong


def cases(h: Hand) -> Draw:
    a, b, c = h.rng.randint(2, 9), h.rng.randint(2, 9), h.integer(-9, 9)

    def write(first: str, second: str, how: str = "%s") -> str:
        rows = [f"{first} & " + how % f"x < {c}", f"{second} & " + how % rf"x \ge {c}"]
        return r"\begin{cases} " + r" \\ ".join(rows[:: h.rng.choice([1, -1])]) + r" \end{cases}"

    gold = write(f"{a}x", f"x + {b}")
    return gold, write(f"{a}x", f"{b} + x", r"\text{if } %s"), write(f"x + {b}", f"{a}x")


def worked_out(h: Hand) -> Draw:
    n = h.rng.randint(2, 40)
    left = h.pick(
        rf"\int_0^{{{n}}} 1\,dx", rf"\lim_{{x \to {n}}} x", rf"\sum_{{k=1}}^{{{n}}} 1", rf"\frac{{d}}{{dx}}({n}x)"
    )
    return str(n), f"{left} = {n}", h.pick(left, f"{left} = {n + 1}", f"{n} = {left}", f"{left} = {n + 1} = {n}")


def logarithm(h: Hand) -> Draw:
    base, argument = h.rng.choice([(2, 5), (3, 7), (5, 6), (7, 4), (2, 9)])
    right = h.pick(
        rf"\log_{base}{argument}",
        rf"\log_{{{base}}}({argument})",
        rf"\frac{{\ln {argument}}}{{\ln {base}}}",
        rf"\frac{{\log {argument}}}{{\log {base}}}",
    )
    return (
        rf"\log_{{{base}}} {argument}",
        right,
        h.pick(rf"\log_{{{argument}}} {base}", rf"\log {argument}", rf"\log_{base} {argument + 1}"),
    )


def times_a_power_of_ten(h: Hand) -> Draw:
    digits, power = h.rng.randint(11, 99), h.rng.randint(3, 12)
    mantissa = f"{digits // 10}.{digits % 10}"
    right = h.pick(
        f"{mantissa} x 10^{power}",
        f"{mantissa} × 10^{{{power}}}",
        f"{mantissa}*10^{power}",
        rf"{mantissa} \cdot 10^{{{power}}}",
    )
    return (
        rf"{mantissa} \times 10^{{{power}}}",
        right,
        h.pick(f"{mantissa} x 10^{power + 1}", rf"{mantissa} \times 10^{{-{power}}}", f"{mantissa}x"),
    )


def sum_of_letters(h: Hand) -> Draw:
    n, left = h.integer(-50, 50), h.pick("a+b", "m+n", "ab", "p+q+r", "a+b+c")
    first, second = h.rng.sample([f"{left} = {n}", str(n)], 2)
    if "r" in left:
        first, second = str(n), f"{left} = {n}"
    return first, second, h.pick(f"{left} = {n + 1}", str(n + 1), f"{left} = {-n}")


def _mistaken(h: Hand, gold: str) -> str:
    """Another value: ``gold`` with something added, a factor, or the other sign. Never 0."""
    return h.pick(
        f"{gold} + {h.rng.randint(1, 9)}", f"-({gold})", f"{h.rng.randint(2, 5)}({gold})", f"\\frac{{{gold}}}{{2}}"
    )


def _joined(h: Hand, values: list[Fraction], opening: str, closing: str) -> str:
    return opening + ", ".join(map(h.number, values)) + closing


def _gold(h: Hand, values: list[Fraction], opening: str, closing: str) -> str:
    return opening + ", ".join(map(h.exact, values)) + closing


def _in_base(n: int, base: int) -> str:
    digits = ""
    while n:
        n, digit = divmod(n, base)
        digits = str(digit) + digits
    return digits


KINDS: dict[str, Callable[[Hand], Draw]] = {
    draw.__name__.replace("_", " "): draw
    for draw in (
        integer, fraction, decimals, rounded_value, repeating, percent, scientific, surd, pi_multiple, power_or_log,
        counting, absolute_value, complex_number, polynomial, rational_function, trigonometric, formula, equation,
        assigned, named_values, interval, union, finite_set, list_of_values, plus_minus, point, matrix, unit, money,
        angle, based, ratio, words, choice, compound_unit, date, clock, unit_vector, residue, chance, spelled_count,
        endless_decimal, turned_bracket, cases, worked_out, logarithm, times_a_power_of_ten, sum_of_letters,
    )
}  # fmt: skip
