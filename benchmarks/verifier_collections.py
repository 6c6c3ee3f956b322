"""Random answers that hold several values. One function for each kind, as `verifier_pairs.py` has it."""

from collections.abc import Callable
from fractions import Fraction

from verifier_spelling import Draw, Hand


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


def unit_vector(h: Hand) -> Draw:
    a, b, c = (h.integer(-9, 9) for _ in range(3))
    styles = (r"\mathbf{%s}", r"\hat{%s}", r"\hat %s", r"\vec{%s}", r"\hat{\mathbf{%s}}", r"\boldsymbol{%s}")

    def write(values: tuple[int, int, int], style: str) -> str:
        return " ".join(
            f"{'+' if v > 0 else '-'} {abs(v)}{style % n}" for v, n in zip(values, "ijk", strict=True)
        ).lstrip("+ ")

    wrong = h.rng.choice([(a, b, -c), (b + 10, a, c), (a, b + 1, c)])
    return write((a, b, c), h.pick(*styles)), write((a, b, c), h.pick(*styles)), write(wrong, h.pick(*styles))


def turned_bracket(h: Hand) -> Draw:
    low, high = sorted(h.distinct(2))
    gold = h.interval(low, high, True, False)
    right = f"]{h.exact(low)}, {h.exact(high)}]"
    wrong = h.pick(
        f"]{h.exact(low)}, {h.exact(high)}[", f"[{h.exact(low)}, {h.exact(high)}]", f"]{h.exact(high)}, {h.exact(low)}]"
    )
    return gold, right, wrong


def _joined(h: Hand, values: list[Fraction], opening: str, closing: str) -> str:
    return opening + ", ".join(map(h.number, values)) + closing


def _gold(h: Hand, values: list[Fraction], opening: str, closing: str) -> str:
    return opening + ", ".join(map(h.exact, values)) + closing
