"""Answer text to typed tree: closed grammar, no evaluation, every bound checked."""

import re
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter

from deltarl.reward import wording
from deltarl.reward.answer import AnswerParser
from deltarl.reward.limits import MAX_DEPTH, MAX_ITEMS, MAX_NODES, LimitError, ParseError
from deltarl.reward.literals import number
from deltarl.reward.normalize import normalize
from deltarl.reward.operators import worked_out
from deltarl.reward.remarks import without_remarks
from deltarl.reward.scanner import END, Token
from deltarl.reward.tokens import tokenize
from deltarl.reward.tree import Equation, Node, Num, Seq, Text, measure, negate, product, reciprocal

_PLAIN_NUMBER = re.compile(r"(-?)([0-9]{1,300}(?:\.[0-9]{1,300})?)")
_PLAIN_FRACTION = re.compile(r"\$?(-?)\\[dt]?frac\{([0-9]{1,300})\}\{([0-9]{1,300})\}\$?")
_DECIMAL_COMMA = re.compile(r"\$?\s*(-?)([0-9]+|[1-9][0-9]{0,2}(?:\.[0-9]{3})+),([0-9]+)\s*\$?")
_FEW_TOKENS = 16
"""No tree of so few comes near the bounds, so it is not measured: a token makes three levels at most."""
_CACHED_TREES = 4_096
_WORDS_OF_PROPORTION = {"to": ":", "out of": "/", "in": "/"}
_KIND = itemgetter(0)
_PLUS_MINUS = (Token("op", "pm"), Token("op", "mp"))


def parse_answer(text: str) -> Node:
    r"""The tree of one answer in LaTeX or plain notation; ``\pm`` gives the list of both values.

    Raises:
        ParseError: not in the grammar, or longer, deeper or larger than the limits.
    """
    plain = _PLAIN_NUMBER.fullmatch(text)
    if plain:
        return negate(number(plain[2])) if plain[1] else number(plain[2])
    plain = _PLAIN_FRACTION.fullmatch(text)
    if plain:
        return _fraction(*plain.groups())
    word = wording.time_of_day(text) or wording.date(text) or wording.yes_or_no(text) or wording.without_article(text)
    if word is not None:
        return word
    try:
        return _with_decimal_comma(text, _parse_mathematics(text))
    except ParseError:
        values = worked_out(text)
        if values:
            return _with_values(values)
        rest = wording.introduced(text)
        if rest is not None:
            return _parse_mathematics(rest)
        words = wording.statement(text) or wording.sentence(text)
        if words is None:
            raise
        return words


@lru_cache(maxsize=_CACHED_TREES)
def _fraction(sign: str, top: str, bottom: str) -> Node:
    fraction = product(number(top), reciprocal(number(bottom)))
    return negate(fraction) if sign else fraction


def _with_values(sides: list[str]) -> Equation:
    """What an integral or a limit is said to be equal to; of the steps on the way those that can be read."""
    found = [_parse_mathematics(sides[-1])]
    for side in sides[-2::-1]:
        try:
            found.append(_parse_mathematics(side))
        except ParseError:
            continue
    return Equation((Text("operator"), *found[::-1]))


def _parse_mathematics(text: str) -> Node:
    return _parse_normalized(normalize(text))


@lru_cache(maxsize=_CACHED_TREES)
def _parse_normalized(text: str) -> Node:
    """Remembered: half of the answers that come back are gold, give or take dollar signs."""
    return _parse_tokens(tuple(tokenize(text)))


@lru_cache(maxsize=_CACHED_TREES)
def _parse_tokens(found: tuple[Token, ...]) -> Node:
    r"""Remembered too: half of the rest are gold but for spaces and for ``\dfrac`` or ``\left``."""
    tokens = list(found)
    if "text" in map(_KIND, found):
        tokens = _without_words(without_remarks(tokens))
    if len(tokens) == 3 and tokens[0].kind == "sym" and tokens[1] in (Token("op", ")"), Token("op", ":")):
        tokens = [tokens[0], END]  # a multiple-choice letter written "C)" or "C:"
    if any(sign in tokens for sign in _PLUS_MINUS):
        upper, lower = (AnswerParser(_choose_sign(tokens, pm, mp)).answer() for pm, mp in ("+-", "-+"))
        node: Node = _both(upper, lower)
    else:
        node = AnswerParser(tokens).answer()
    if len(tokens) > _FEW_TOKENS:
        size, depth = measure(node)
        if size > MAX_NODES or depth > MAX_DEPTH:
            raise LimitError(f"more than {MAX_NODES} terms or {MAX_DEPTH} levels")
    return node


def _without_words(tokens: list[Token]) -> list[Token]:
    """``3 to 4`` as a ratio, ``3 out of 8`` as a fraction."""
    for at in range(1, len(tokens) - 1):
        sign = _WORDS_OF_PROPORTION.get(tokens[at].value) if tokens[at].kind == "text" else None
        if sign and tokens[at - 1].kind == tokens[at + 1].kind == "num":
            tokens = [*tokens[:at], Token("op", sign), *tokens[at + 1 :]]
    return tokens


def _with_decimal_comma(text: str, node: Node) -> Node:
    """``3,14`` is a list of two, and may be the number 3.14; so ``1.234,5``, which groups its digits with dots."""
    match = _DECIMAL_COMMA.fullmatch(text)
    if match and isinstance(node, Seq) and node.kind == "list":
        decimal = number(f"{match[2].replace('.', '')}.{match[3]}")
        return replace(node, decimal=Num(-decimal.value, decimal.decimals) if match[1] else decimal)
    return node


def _both(upper: Node, lower: Node) -> Node:
    """The readings of an answer with its plus-minus signs as plus and as minus, in one list."""
    match upper, lower:
        case Seq(kind, uppers), Seq(_, lowers) if kind in ("list", "set"):
            items: list[Node] = []
            for pair in zip(uppers, lowers, strict=True):
                items += pair[:1] if pair[0] == pair[1] else pair
            if len(items) > MAX_ITEMS:
                raise LimitError(f"more than {MAX_ITEMS} elements")
            return Seq(kind, tuple(items))
    return Seq("list", (upper, lower))


def _choose_sign(tokens: list[Token], plus_minus: str, minus_plus: str) -> list[Token]:
    signs = {Token("op", "pm"): Token("op", plus_minus), Token("op", "mp"): Token("op", minus_plus)}
    return [signs.get(token, token) for token in tokens]
