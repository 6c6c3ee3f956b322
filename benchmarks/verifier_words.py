"""Random answers with words or units. One function for each kind, as `verifier_pairs.py` has it."""

import math

from verifier_spelling import Draw, Hand


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


def spelled_count(h: Hand) -> Draw:
    n = h.rng.randint(5, 12)
    k = h.rng.randint(2, n - 2)
    forms = (r"\binom{%d}{%d}", "C(%d, %d)", "_{%d}C_{%d}", r"{}_{%d}C_{%d}", r"C_{%d}^{%d}", r"{%d \choose %d}")
    return str(math.comb(n, k)), h.pick(*forms) % (n, k), h.pick(*forms) % (n + 1, k)
