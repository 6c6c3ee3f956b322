r"""Seeded hostile answers: of the verifier's own grammar, of what attacks computer algebra, and mutilations of both."""

import random
from collections.abc import Callable

_GOLDS = (
    "42", "-7/3", "3.14", r"\sqrt{2}", r"\frac{\pi}{4}", "x^2 + 2x + 1", r"\sin 2x", "2^{1000}", "9^{9^{9^9}}",
    "(1, 2]", r"[0, 1) \cup (2, \infty)", r"\{1, 2, 3\}", "(1, -2, x)", r"\begin{pmatrix} 1 & 2 \\ 3 & x \end{pmatrix}",
    "2x + 3y = 5", r"x \le 3", r"\{x \mid x > 2\}", r"3 \pm \sqrt{5}", r"5 \text{ cm}", "15\\%", "1011_2",
    r"\text{east}", r"\binom{n}{2}",
)  # fmt: skip
_NUMBERS = (
    *"0123456789", "10", "999", "0.5", ".5", "3.", "1,234", "1e9", "1e-400", "10^{99}", "10^{9999}", "9" * 300,
    r"\pi", "e", "i", r"0.\overline{3}", r"2\frac{1}{2}", r"\infty", "-1", "-3.7", "20!", r"\sqrt{3}", r"10^{-30}",
)  # fmt: skip
_SYMBOLS = (*"xyzntkab", r"\theta", "x_{1}", r"\alpha_{n+1}", "R", "A")
_ODDITIES = (
    r"\emptyset", r"\mathbb{R}", r"\text{none}", r"5\text{ cm}", r"30^\circ", "50\\%", "\\$5", "101_2", "1011_{10^9}",
    "2:3", "6:00\\text{ p.m.}", "²", "½", "∞", "π", "−", "√2", "\uff11\uff12", "\u200b", "\u202e", "\x00", "\ud800",
    "e\u0301" * 20, "\U0001d7d8", "٣", "nan", "inf", "None", "True",
)  # fmt: skip
_ATTACKS = (
    "9^{9^{9^{9}}}", "((20!)!)!", "(10^9)!", "10^{9999}!", r"\binom{10^9}{5\cdot10^8}", r"\binom{1000}{500}^{1000}",
    "1000!^{1000!}", "e^{e^{e^{e^{e^9}}}}", r"\tan(\tan(\tan(10^{999})))", r"\lfloor 10^{9999}\pi \rfloor",
    "(x+y+z+t+w+a+b)^{20}", "(1+x)^{10^9}", r"\sqrt[10^9]{2}", "0^0", "1/0", "0/0", r"\ln 0", r"\infty-\infty",
    r"\sum_{k=1}^{10^9} k", r"\int_0^1 x dx", r"\lim_{x\to0} x", r"\prod_{k=1}^{999} k", "7=1=2", "0=0", "x=x",
    "eye(20000)", "__import__('os').system('touch pwned')", "[x for x in ().__class__.__base__.__subclasses__()]",
    "Integer('42')", "lambda: 0", "42; import os", "{0.__class__}", "%s%n%x", r"\input{/etc/passwd}", r"\def\x{\x\x}\x",
    r"\write18{id}", r"\boxed{42}", "</think>", "<answer>42</answer>", "#### 42", r"\text{" * 60, r"\frac" * 90,
    "{" * 120, "|" * 200, "-" * 300, "x^" * 120 + "2", "1," * 120, r"\sqrt{" * 60, r"\left(" * 90,
    "(" * 300 + ")" * 300, "[" * 51 + "]" * 51, "!" * 200,
)  # fmt: skip
_FUNCTIONS = (
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp",
)  # fmt: skip
_RELATIONS = (" = ", " < ", " > ", r" \le ", r" \ge ", r" \neq ", r" \approx ", r" \in ", r" \equiv ", r" \to ")
_OPERATORS = (" + ", " - ", " ", r" \cdot ", r" \times ", "*", "/", " + ", " - ", " ", r" \pm ")
_NESTINGS = (
    ("(", ")"), ("{", "}"), (r"\frac{1}{", "}"), (r"\sqrt{", "}"), ("2^{", "}"), ("|", "|"), (r"\sin(", ")"), ("-", ""),
    ("", "!"), ("[", "]"), (r"\text{", "}"), (r"\{", r"\}"), (r"\lfloor ", r"\rfloor "), ("1+(", ")"), ("x^{", "}"),
)  # fmt: skip


class Hostile:
    """An endless supply of hostile golds and completions, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def gold(self) -> str:
        """Half of them golds as data sets have them, the others whatever the grammar yields."""
        chance = self._rng.random()
        if chance < 0.5:
            return self.pick(_GOLDS)
        return self._answer() if chance > 0.95 else self.scalar(self._rng.randint(1, 3))

    def completion(self, gold: str) -> str:
        """A response with a hostile answer, which may be close to ``gold``, mostly in one box."""
        answer = self._mutilated(gold) if self._rng.random() < 0.25 else self._answer()
        box = rf"\boxed{{{answer}}}"
        if self._rng.random() < 0.9:
            return box
        opening = self.pick((r"\boxed{", r"\text{", "$", "{", r"\(", " "))
        return self.pick(
            (
                rf"\boxed{{{answer}",
                box * self._rng.randint(2, 400),
                rf"\boxed{{{box}}}",
                f"<think>{box}",
                f"{box}</think>{answer}",
                f"{answer}\n" * self._rng.randint(1, 200) + box,
                opening * 8_000 + box,
                box + "x" * 100_000,
            )
        )

    def scalar(self, depth: int) -> str:
        """A value, of at most so many operations within each other."""
        chance = self._rng.random()
        if chance < 0.01:
            return self.pick(_ODDITIES)
        if chance < 0.02:
            return self.pick(_ATTACKS)
        if depth == 0 or chance < 0.15:
            return self.pick(_SYMBOLS if self._rng.random() < 0.4 else _NUMBERS)
        return self._rng.choice(_SCALARS)(self, depth - 1)

    def several(self, depth: int, separator: str, most: int = 4) -> str:
        return separator.join(self.scalar(depth) for _ in range(self._rng.randint(1, most)))

    def pick(self, choices: tuple[str, ...]) -> str:
        return self._rng.choice(choices)

    def _answer(self) -> str:
        rng = self._rng
        if rng.random() < 0.05:
            return self.pick(_ATTACKS + _ODDITIES)
        depth = rng.randint(0, 4)
        text = self.scalar(depth) if rng.random() < 0.5 else rng.choice(_COLLECTIONS)(self, depth // 2)
        return self._mutilated(text) if rng.random() < 0.4 else text

    def _mutilated(self, text: str) -> str:
        for _ in range(self._rng.choice((1, 1, 1, 2, 4))):
            text = self._changed(text)[:3_000]
        return text

    def _changed(self, text: str) -> str:
        rng = self._rng
        start = rng.randrange(len(text) + 1)
        end = start + rng.randint(0, 8)
        before, span, after = text[:start], text[start:end], text[end:]
        opening, closing = rng.choice(_NESTINGS)
        depth = rng.choice((1, 1, 1, 2, 5, 45, 200))
        return self.pick(
            (
                before + after,
                before + span * rng.choice((2, 3, 20, 100)) + after,
                before + self.scalar(1) + after,
                before + rng.choice("{}()[]|\\^_$&%,.!'\"=<>") + after,
                before + span.swapcase() + after,
                before + chr(rng.randrange(0x110000)) + after,
                after + span + before,
                before,
                opening * depth + text + closing * depth,
                opening * depth + text + closing * depth,
                f"({text})({self.scalar(1)})/({self.scalar(1)})",
                f"{text}{self.pick(_OPERATORS)}{self.scalar(2)}",
            )
        )


_Form = Callable[[Hostile, int], str]
_SCALARS: tuple[_Form, ...] = (
    lambda h, d: h.scalar(d) + h.pick(_OPERATORS) + h.scalar(d),
    lambda h, d: h.scalar(d) + h.pick(_OPERATORS) + h.scalar(d),
    lambda h, d: f"({h.several(d, ' + ')})({h.several(d, ' - ')})",
    lambda h, d: rf"\frac{{{h.scalar(d)}}}{{{h.scalar(d)}}}",
    lambda h, d: f"({h.scalar(d)})^{{{h.scalar(d)}}}",
    lambda h, d: f"({h.several(d, ' + ')})^{h.pick(tuple('23459'))}",
    lambda h, d: rf"\sqrt[{h.pick(_NUMBERS)}]{{{h.scalar(d)}}}",
    lambda h, d: rf"\sqrt{{{h.scalar(d)}}}",
    lambda h, d: f"({h.scalar(d)})!",
    lambda h, d: rf"\binom{{{h.scalar(d)}}}{{{h.scalar(d)}}}",
    lambda h, d: rf"\{h.pick(_FUNCTIONS)}({h.scalar(d)})",
    lambda h, d: rf"\{h.pick(_FUNCTIONS)}^2 {h.scalar(0)}",
    lambda h, d: rf"\log_{{{h.scalar(0)}}}({h.scalar(d)})",
    lambda h, d: rf"\left|{h.scalar(d)}\right|",
    lambda h, d: rf"\lfloor {h.scalar(d)} \rfloor",
)
_COLLECTIONS: tuple[_Form, ...] = (
    lambda h, d: h.scalar(d) + h.pick(_RELATIONS) + h.scalar(d),
    lambda h, d: f"{h.scalar(0)} < {h.pick(_SYMBOLS)} < {h.scalar(d)}",
    lambda h, d: rf"\{{{h.several(d, ', ', 6)}\}}",
    lambda h, d: f"({h.several(d, ', ')})",
    lambda h, d: h.several(d, ", ", 60),
    lambda h, d: f"[{h.scalar(d)}, {h.scalar(d)})",
    lambda h, d: rf"({h.scalar(0)}, {h.scalar(d)}) \cup [{h.scalar(d)}, \infty)",
    lambda h, d: rf"(-\infty, {h.scalar(d)}) \setminus \{{{h.several(d, ', ')}\}}",
    lambda h, d: rf"\{{x \mid x > {h.scalar(d)}\}}",
    lambda h, d: rf"\begin{{pmatrix}} {h.scalar(d)} & {h.scalar(d)} \\ {h.scalar(0)} & {h.scalar(d)} \end{{pmatrix}}",
    lambda h, d: rf"\begin{{pmatrix}} {h.several(d, ' & ', 20)} \\ {h.several(d, ' & ', 20)} \end{{pmatrix}}",
    lambda h, d: rf"\begin{{cases}} {h.scalar(d)} & x > 0 \\ {h.scalar(d)} & x \le 0 \end{{cases}}",
    lambda h, d: rf"x = {h.scalar(d)} \text{{ and }} y = {h.scalar(d)}",
    lambda h, d: rf"f({h.pick(_SYMBOLS)}) = {h.scalar(d)}",
    lambda h, d: rf"{h.scalar(d)} \text{{ {h.pick(('cm', 'km/h', 'apples', 'is prime', 'if x > 0'))}}}",
    lambda h, d: rf"{h.scalar(d)} \pmod{{{h.scalar(0)}}}",
)
