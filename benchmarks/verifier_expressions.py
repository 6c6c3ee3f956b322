"""Random expressions and equations. One function for each kind, as `verifier_pairs.py` has it."""

from fractions import Fraction

from verifier_spelling import Draw, Hand, mistaken, times


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
    return gold, right, mistaken(h, gold)


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


def cases(h: Hand) -> Draw:
    a, b, c = h.rng.randint(2, 9), h.rng.randint(2, 9), h.integer(-9, 9)

    def write(first: str, second: str, how: str = "%s") -> str:
        rows = [f"{first} & " + how % f"x < {c}", f"{second} & " + how % rf"x \ge {c}"]
        return r"\begin{cases} " + r" \\ ".join(rows[:: h.rng.choice([1, -1])]) + r" \end{cases}"

    gold = write(f"{a}x", f"x + {b}")
    return gold, write(f"{a}x", f"{b} + x", r"\text{if } %s"), write(f"x + {b}", f"{a}x")


def sum_of_letters(h: Hand) -> Draw:
    n, left = h.integer(-50, 50), h.pick("a+b", "m+n", "ab", "p+q+r", "a+b+c")
    first, second = h.rng.sample([f"{left} = {n}", str(n)], 2)
    if "r" in left:
        first, second = str(n), f"{left} = {n}"
    return first, second, h.pick(f"{left} = {n + 1}", str(n + 1), f"{left} = {-n}")
