"""The quick ways out of tokenizer and extraction: they may only be taken where the long way leads to the same."""

import random

import pytest

from deltarl.reward import tokens
from deltarl.reward.limits import ParseError
from deltarl.reward.prose import last_word_may_be
from deltarl.reward.rivals import _OFFERING, _OR_BEFORE

_PARTS = [
    *"+-/|:%=<>!*()[]{},;^_.'~$& xyzeistndrh0123456789", r"\frac", r"\left", r"\right", r"\pi", r"\alpha", r"\,", r"\;",
    r"\{", r"\}", r"\pm", r"\mathrm", r"\text", "st", "nd", "th", "12", "1,234", "1.5", "1e5", "3.(6)", "{,}", r"\log",
    "^2", "^{2}", r"^\circ", r"^{\prime}", "x_1", r"\alpha_1", "and", "sin", r"\overline", r"\\", "**", "<=", "2^{nd}",
]  # fmt: skip
_WORDS = [
    "5",
    "12.5",
    " ",
    "\n",
    "$",
    "(",
    "\\",
    "}",
    "or",
    "OR",
    "vs.",
    "for",
    "maybe",
    "perhaps",
    "x",
    "=",
    "is",
    ",",
]


def test_tokens_found_together_are_those_found_step_by_step() -> None:
    rng = random.Random(1)
    together = 0
    for _ in range(20_000):
        text = "".join(rng.choices(_PARTS, k=rng.randint(1, 8)))
        found = tokens._plain_tokens(text)
        if found is not None:
            together += 1
            assert found == tokens._Tokenizer(text).run(), text
    assert together > 2_000


@pytest.mark.parametrize(
    "text", ["1,234", "x_1", "5 cm", "2^{nd}", r"\alpha_1", "1.5e3", "x'", "1,,2", "3.(6)", r"\foo"]
)
def test_what_takes_more_than_a_look_is_left_to_the_steps(text: str) -> None:
    assert tokens._plain_tokens(text) is None


def test_two_separators_in_a_row_are_still_refused() -> None:
    with pytest.raises(ParseError, match="separators"):
        tokens.tokenize("x,,y")


def test_the_last_word_hides_no_alternative() -> None:
    rng = random.Random(2)
    matches = 0
    for _ in range(20_000):
        before = "".join(rng.choices(_WORDS, k=rng.randint(1, 8)))
        if _OR_BEFORE.search(before):
            matches += 1
            assert last_word_may_be(_OFFERING, before), before
    assert matches > 200
