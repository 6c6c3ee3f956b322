"""The quick ways out of tokenizer and extraction: they may only be taken where the long way leads to the same."""

import random

import pytest

from deltarl.reward import attached, choices, expression, extract, normalize, parse, tokens, wording
from deltarl.reward.answer import AnswerParser
from deltarl.reward.limits import MAX_DEPTH, ParseError
from deltarl.reward.prose import last_word_may_be
from deltarl.reward.quick import compare_quickly
from deltarl.reward.reading import Gold, read_gold
from deltarl.reward.rivals import _OFFERING, _OR_BEFORE
from deltarl.reward.scanner import Token

_PARTS = [
    *"+-/|:%=<>!*()[]{},;^_.'~$& xyzeistndrh0123456789", r"\frac", r"\left", r"\right", r"\pi", r"\alpha", r"\,", r"\;",
    r"\{", r"\}", r"\pm", r"\mathrm", r"\text", "st", "nd", "th", "12", "1,234", "1.5", "1e5", "3.(6)", "{,}", r"\log",
    "^2", "^{2}", r"^\circ", r"^{\prime}", "x_1", r"\alpha_1", "and", "sin", r"\overline", r"\\", "**", "<=", "2^{nd}",
]  # fmt: skip
_DIFFICULT = [
    "m", " 3", ",23", ",234", "{d", "d x}", r"\frac{d", "{d x}", r"\text{d}", r"\mathrm{cm}", "hours", "in", "s ",
    r"\begin{matrix}", r"\end{matrix}", "&", r"\bar", r"\dot",
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


class _StepByStep(tokens._Tokenizer):
    def plain(self) -> int:
        """Past the spaces, and no more."""
        while self.text[self.at : self.at + 1] in tuple(" \t\r\n~$"):
            self.at += 1
        return self.at


def _outcome(tokenizer: tokens._Tokenizer) -> list[Token] | str:
    try:
        return tokenizer.run()
    except ParseError as error:
        return str(error)


def test_tokens_found_at_once_are_those_found_step_by_step() -> None:
    rng = random.Random(3)
    for _ in range(20_000):
        text = "".join(rng.choices([*_PARTS, *_DIFFICULT], k=rng.randint(1, 8)))
        assert _outcome(tokens._Tokenizer(text)) == _outcome(_StepByStep(text)), text


def test_whole_texts_are_found_at_once() -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices(_PARTS, k=rng.randint(1, 8))) for _ in range(20_000)]
    assert sum(tokens._Tokenizer(text).plain() == len(text) for text in texts) > 2_000


@pytest.mark.parametrize(
    "text",
    [
        *("1,234", "x_1", "5 cm", "2^{nd}", "2nd", r"\alpha_1", "1.5e3", "x'", "1,,2", "3.(6)", r"\foo", "5 m 3"),
        *(r"\frac{d}{d x} x", r"\frac{d y}{d x}", r"\dfrac {\text{d}}{\text{d}x}", r"0.0\overline{7}"),
    ],
)
def test_what_takes_more_than_a_look_is_left_to_the_steps(text: str) -> None:
    assert tokens._Tokenizer(text).plain() < len(text)


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


def test_an_argument_taken_at_once_is_what_the_parser_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    parts = ["{", "}", "{2}", "{x}", "{12}", "{-3}", r"\frac", r"\sqrt", "^", "2", "x", "+", "(", ")", r"\pi", "!"]
    # One level less than is allowed, that many, and one more: both ways are refused at the same depth.
    nested = [r"\sqrt{" * depth + "2" + "}" * depth for depth in range(MAX_DEPTH // 2 - 2, MAX_DEPTH // 2 + 2)]
    texts = nested + ["".join(rng.choices(parts, k=rng.randint(2, 9))) for _ in range(10_000)]
    at_once = [_tree(text) for text in texts]
    monkeypatch.setattr(expression, "_OPEN", None)
    assert at_once == [_tree(text) for text in texts]
    assert 0 < sum("levels" in tree for tree in at_once[: len(nested)]) < len(nested)


def _tree(text: str) -> str:
    try:
        return repr(AnswerParser(tokens.tokenize(normalize.normalize(text))).answer())
    except ParseError as error:
        return str(error)


def test_what_cannot_be_printed_is_all_that_is_unescaped_or_hidden() -> None:
    for char in map(chr, range(0x110000)):
        if normalize._CONTROL.search(char) or char in normalize._ESCAPES:
            assert not char.isprintable()


def test_no_date_is_passed_over() -> None:
    rng = random.Random(5)
    parts = ["March", "5", "th", " ", ",", "2020", r"\text{", "}", "{", "$", "^", r"\,", r"\ ", "of", ".", "the "]
    dates = 0
    for _ in range(20_000):
        text = "".join(rng.choices([*parts, "=", r"\f", "-"], k=rng.randint(2, 7)))
        if wording._DATE.fullmatch(wording._TEXT_MARKS.sub("", text)):
            dates += 1
            assert not wording._IN_NO_DATE.search(text), text
    assert dates > 50


def test_no_option_is_passed_over() -> None:
    rng = random.Random(6)
    parts = [
        "A",
        "B",
        "(",
        ")",
        ".",
        ":",
        " ",
        "$",
        "{",
        "}",
        r"\text",
        r"\left",
        r"\right",
        r"\quad",
        r"\(",
        "x",
        "5",
        "\n",
    ]
    options = 0
    for _ in range(20_000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 8)))
        if choices._GOLD.fullmatch(choices._WRAPPERS.sub(" ", text).strip()):
            options += 1
            assert choices._BEGINS_WITH_LETTER.match(text), text
    assert options > 200


def test_no_box_is_passed_over() -> None:
    for box in (r"\boxed{5}", r"\fbox{5}", r"\framebox{5}", r"\boxed 5"):
        for before in ("", "text ", "a box: "):
            assert extract._boxed(before + box) == "5"


def test_what_says_nothing_behind_a_box_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    before = ["-", "$", "x = ", "(", "or ", "5", "not ", "half of ", "|", r"\frac{1}", "{", "^", ", ", " "]
    after = ["$", ".", " ", "\n", "%", "|", ")", "}", "cm", "or 6", "?", " is wrong", "!", ",5", "5"]
    texts = [
        "".join(rng.choices(before, k=rng.randint(0, 3)))
        + r"\boxed{7}"
        + "".join(rng.choices(after, k=rng.randint(0, 3)))
        for _ in range(20_000)
    ]
    found = [extract._boxed(text) for text in texts]
    for module in (extract, attached):
        monkeypatch.setattr(module, "says_nothing", lambda after: False)
    for text, answer in zip(texts, found, strict=True):
        assert extract._boxed(text) == answer, text


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("fraction", [r"\frac{1}{2}", r"\dfrac{12}{08}", r"\tfrac{0}{5}", r"\frac{4}{0}"])
def test_a_fraction_read_directly_is_the_one_that_the_grammar_has(sign: str, fraction: str) -> None:
    text = f"${sign}{fraction}$"
    assert parse._PLAIN_FRACTION.fullmatch(text)
    assert parse.parse_answer(text) == parse._parse_mathematics(text)


@pytest.mark.parametrize(
    "gold", ["5", "x^2", r"\frac{1}{x+1}", r"\sin x", "1, 2", "3.14", "(0, 1]", "x = 5", r"\infty"]
)
def test_what_is_known_of_gold_and_itself_is_how_the_comparison_ends(gold: str) -> None:
    read = read_gold(gold)
    assert isinstance(read, Gold)
    assert read.itself in (None, compare_quickly(read.node, read.node))
    assert read.itself is not None or gold in ("1, 2", "(0, 1]", "x = 5")
