"""Remarks around an answer that do not change it, taken from its tokens."""

from deltarl.reward.limits import ParseError
from deltarl.reward.relations import RELATIONS
from deltarl.reward.scanner import COMMA, END, Token

_LEADING_WORDS = ("for all", "for any", "for every", "for each", "where")
_DECLARATION = (Token("op", "("), Token("op", "in"), Token("op", ")"))
_SEPARATORS = (COMMA, Token("op", "and"), Token("op", "or"))


def without_remarks(tokens: list[Token]) -> list[Token]:
    r"""Without "for all x in Q" and "where k is an integer", up to the next comma, ``and`` or ``or``.

    Raises:
        ParseError: the remark is a condition, which changes the answer.
    """
    tokens = _without_declarations(tokens)
    if not any(token.kind == "text" and token.value.startswith(("for", "where")) for token in tokens):
        return tokens  # which is nearly always so
    kept: list[Token] = []
    skipping = False
    for at, token in enumerate(tokens):
        if token is END or token in _SEPARATORS:
            skipping = False
        elif skipping and token.kind == "op" and (token.value in RELATIONS or token.value == "="):
            raise ParseError("a condition after the answer")
        elif kept and token.kind == "text":
            words = " ".join(t.value for t in tokens[at : at + 2] if t.kind == "text")
            if words.startswith(_LEADING_WORDS):
                skipping = True
                if kept[-1] == COMMA:
                    kept.pop()
        if not skipping:
            kept.append(token)
    return kept


def _without_declarations(tokens: list[Token]) -> list[Token]:
    r"""Without ``(k \in \mathbb{Z})``."""
    for at in range(len(tokens) - 4, 0, -1) if _DECLARATION[1] in tokens else ():
        opening, variable, relation, domain, closing = tokens[at : at + 5] if at + 5 <= len(tokens) else (END,) * 5
        if (opening, relation, closing) == _DECLARATION and (variable.kind, domain.kind) == ("sym", "text"):
            tokens = tokens[:at] + tokens[at + 5 :]
    return tokens
