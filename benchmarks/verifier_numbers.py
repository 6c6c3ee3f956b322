"""Random values: numbers in every notation. One function for each kind, as `verifier_pairs.py` has it."""

import math
from fractions import Fraction

from verifier_spelling import Draw, Hand, decimal, mistaken, rounded


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
    return gold, h.pick(gold, right, right), mistaken(h, gold)


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


def based(h: Hand) -> Draw:
    base, n = h.rng.choice([2, 3, 5, 8]), h.rng.randint(9, 300)
    digits = _in_base(n, base)
    gold = f"{digits}_{base}"
    return gold, f"{digits}_{{{base}}}", h.pick(f"{digits}_{base + 1}", f"{_in_base(n + 1, base)}_{base}")


def ratio(h: Hand) -> Draw:
    a, b = h.rng.sample(range(2, 10), 2)  # with two digits after the colon it may be a time of day
    k = h.rng.randint(2, 5)
    return f"{a}:{b}", h.pick(f"{k * a}:{k * b}", f"{a} : {b}"), h.pick(f"{b}:{a}", f"{a}:{b + 1}", f"{a}:{b}:1")


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


def endless_decimal(h: Hand) -> Draw:
    digits = str(h.rng.randint(1, 8)) if h.rng.random() < 0.5 else f"{h.rng.choice([12, 27, 36, 45, 63, 81]):02d}"
    value = Fraction(int(digits), 10 ** len(digits) - 1)
    right = h.pick(rf"0.{digits * 3}\ldots", f"0.{digits * 4}...", rf"0.\overline{{{digits}}}", rf"0.({digits})")
    return h.exact(value), right, h.pick(f"0.{digits * 3}", rf"0.{digits * 2}9\ldots", rf"0.0{digits * 3}\ldots")


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


def _in_base(n: int, base: int) -> str:
    digits = ""
    while n:
        n, digit = divmod(n, base)
        digits = str(digit) + digits
    return digits
