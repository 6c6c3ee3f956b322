r"""What is written around a box and belongs to the answer in it: ``-\boxed{5}``, ``\boxed{5} \times 10^3``.

Read from the tokens on both sides, up to the end of the formula, an equals sign, a comma or a word of prose.
"""

import re
from typing import NamedTuple

from deltarl.reward.prose import says_nothing
from deltarl.reward.units import conversion

_NEAR = 200
"""Characters on each side of a box that are looked at."""

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[A-Za-z]{2,}|[0-9]+(?:\.[0-9]+)?|\*\*+|\s+|.", re.DOTALL)
_SPACING = frozenset([r"\,", r"\;", r"\:", r"\!", r"\ ", "~"])
_WRAPPING = (
    r"\text \mbox \textbf \mathbf \mathrm \mathit \boldsymbol \bm \underline \color \textcolor \displaystyle \left"
    r" \right \boxed \fbox \framebox \bf \rm \Large \large \huge \Huge \LARGE"
)
_WRAPPERS = frozenset(_WRAPPING.split())
# They carry no value, or separate what stands before them from the answer; any other command is part of a formula.
_ENDING = (
    r"\( \) \[ \] \\ \$ \quad \qquad \implies \impliedby \iff \Rightarrow \rightarrow \Longrightarrow \longrightarrow"
    r" \Leftrightarrow \to \mapsto \therefore \because \approx \sim \simeq \equiv \cong \in \colon \begin \end \tag"
    r" \label \hline \blacksquare \square \qed \checkmark \dots \ldots \cdots \vdots \newline \par \item"
    r" \small \normalsize \mathbb \mathcal"
)
_ENDING_COMMANDS = _WRAPPERS | frozenset(_ENDING.split())
_IN_FORMULA = frozenset("+-*/^_<>!()[]{}≤≥≠±×÷·−√π°²³")
_OPERATORS = frozenset("+-*/^_<>≤≥≠±×÷·−")
_NO_MULTIPLES = "dozen|hundred|thousand|million|billion|trillion"
_MAGNITUDE = re.compile(
    rf"(?:{_NO_MULTIPLES}|lakh|crore|squared|cubed|to the power(?: of)?|factorial|hal(?:f|ves)|thirds?|quarters?"
    r"|fourths?|fifths?|tenths?|hundredths?|thousandths?)s?"
    r"|(?:times|mod|plus|minus|choose|over|divided by) [$\\(]{0,2}[0-9].*",
    re.IGNORECASE,
)
_AFTER_FORMULA = re.compile(r"(?:\s|\\[,;:! ]|~|\$|\\\)|\\\])*(?:\\(?:text|mbox|mathrm)\s*\{\s*)?")
_WORDS = re.compile(r"[A-Za-z]+(?:(?: per |[/^ ]|\s)(?:[$\\(]{0,2})[A-Za-z0-9]+){0,3}")
_GROUP = re.compile(r"\\(?:text|mbox|mathrm|textrm)\s*\{([^{}]{0,60})\}(\$?\^\{?[0-9]\}?)?")
_POWER_OR_QUOTIENT = re.compile(r"[}$]*[/^]| per ")
_ENUMERATOR = re.compile(r"\(?(?:[0-9]{1,3}|[A-Za-z]{1,3})\)(?:\s*-)?|[0-9]{1,3}|[A-Za-z]|[-+*>#]")
_PLAIN = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_DIGITS_BEFORE = re.compile(r"[0-9][0-9.,]*\Z")
_DIGITS_AFTER = re.compile(r"[.,:]?[0-9]+")
_WORDS_OF_UNIT = 4
_NOTHING_BEFORE = re.compile(r"\s*(?:[^\s\w~\\+\-*/^<>!()\[\]{}≤≥≠±×÷·−√π°²³]|[A-Za-z]{2,}+)(?!\\)")
"""What ends the formula right before a box, read backwards: a sign that is in none, such as $ or =, or a word."""
_BESIDE, _LONGEST_RELATION = 40, 10
_SIGNS = tuple("-+*/^−≠≤≥<>±×÷·√")
_DELIMITER = r"\$|\\[()\[\]]"
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp"
_NO_OPERAND = r"\{\s*\}"
# An operator or relation at the end of one formula, and a box behind it, which begins the next or stands in the text.
_OPERATOR_OUTSIDE = re.compile(
    rf"(?P<relation>\\(?:{_FUNCTIONS}|neq?|not|leq?|geq?|leqslant|geqslant|lt|gt|ll|gg|pm|mp|times|cdot|div|sqrt)"
    rf"|[≠≤≥<>±×÷·√])(?:{_NO_OPERAND})?"
    rf"(?P<gap>[\s~]*(?:{_DELIMITER})(?:[\s~]|{_DELIMITER}|\\[,;:! ])*)$"
    rf"|(?P<sign>[-+*/^−])(?:{_NO_OPERAND})?(?P<between>(?:[\s~]|\\[,;:! ])*)(?P<first>{_DELIMITER})"
    rf"(?:[\s~]|{_DELIMITER}|\\[,;:! ])*$"
)
# The same at the beginning of a formula behind it.
_OPERATOR_BEHIND = re.compile(
    rf"(?:[ \t~]|{_DELIMITER}|\\[,;:! ])*(?:\$|\\[(\[])\s*"
    r"(?P<operator>[+*/^_!<>≤≥≠±×÷·]|\\(?:times|cdot|div|pm|mp|leq?|geq?|neq?|lt|gt)(?![A-Za-z]))"
)
_BARS = re.compile(r"(?:\\left\s*|\\[lr]?)?\|$|\\[lr]?vert\s*$")
_BARS_AFTER = re.compile(r"(?:\\right\s*|\\[lr]?)?\||\\[lr]?vert(?![A-Za-z])")


class _Left(NamedTuple):
    """What belongs to a box before it: where it begins, the braces it leaves open, and those to be skipped."""

    begin: int
    opened: int
    wrapped: int


def with_attachments(text: str, start: int, end: int, content: str) -> str:
    """``content`` of the box at ``text[start:end]``, with what is attached to it; often nothing."""
    alone = says_nothing(text[end : end + _NEAR])
    if _PLAIN.fullmatch(content.strip()):
        window = text[max(0, start - _NEAR) : start]
        digits_before = _DIGITS_BEFORE.search(window) if _ends_in_a_digit(window) else None
        digits_after = None if alone else _DIGITS_AFTER.match(text, end)
        if digits_before or digits_after:  # one number, a part of it boxed
            matches = (digits_before, digits_after)
            leading, trailing = (match.group() if match else "" for match in matches)
            return leading + content.strip() + trailing
    outside = _operator_outside(text, start)
    if outside is not None:
        text = text[max(0, outside - _NEAR) : outside] + text[start : end + _NEAR]
        start, end = min(outside, _NEAR), min(outside, _NEAR) + end - start
    if not alone:
        if _is_between_bars(text, start, end):
            return f"|{content}|"
        operator = _operator_behind(text, end)
        text = text if operator is None else text[:end] + text[operator : operator + _NEAR]
    left = _left(text, start)
    before = text[left.begin : start].strip()
    after = ""
    if not alone:
        found, stop = _right(text, end, left)
        after = found.strip()
        if not before and not after.strip("!") and _is_exclamation(text, end, stop):
            after = ""
        after = after or _words(text, stop)
    if before == "(" and after.startswith(")"):
        before, after = "", after[1:].strip()
    if not before and not after:
        return content
    content = content.strip()
    before += " " if before[-1:].isalpha() else ""
    return before + (content if _PLAIN.fullmatch(content) and not before[-1:].isdigit() else f"({content})") + after


def _ends_in_a_digit(text: str) -> bool:
    """Whether a number may end ``text``, of which a pattern would have to be tried at every character."""
    return text[-1:] in tuple("0123456789.,")


def _operator_outside(text: str, start: int) -> int | None:
    """Where an operator ends that applies to the box at ``start`` over the end of a formula: ``$-$ \\boxed{5}``.

    A minus in the text is one only where it is stuck to the formula: ``is -$\\boxed{5}$``, but not ``Answer - $...``.
    """
    tail = text[max(0, start - _BESIDE) : start].rstrip("\\()[]{}$ ~,;:!")
    if not (tail[-1:] in _SIGNS or (tail[-1:].islower() and "\\" in tail[-_LONGEST_RELATION:])):
        return None  # which is nearly always so
    line = text[max(0, start - _NEAR) : start].rpartition("\n")[2]
    found = _OPERATOR_OUTSIDE.search(line)
    if found is None:
        return None
    before = line[: found.start()]
    at = start - len(line)
    if found["relation"]:
        return at + found.end("relation") if before.strip(" $>") or found["relation"] != ">" else None
    closes = found["first"] in (r"\)", r"\]") or (found["first"] == "$" and _in_formula(before))
    stuck = not found["between"] and (before[-1:].isspace() or before[-1:] in ("(", ":", "="))
    return at + found.end("sign") if closes or (stuck and found["sign"] in "-−") else None


def _operator_behind(text: str, end: int) -> int | None:
    """Where an operator in the next formula stands that applies to the box before ``end``: ``\\boxed{5} $^2$``."""
    found = _OPERATOR_BEHIND.match(text, end, end + _NEAR)
    if found is None:
        return None
    at = found.start("operator")
    before = text[text.rfind("\n", 0, end) + 1 : at].rstrip()  # all of the line, as its dollar signs are counted
    return at if before[-1] != "$" or _in_formula(before) else None


def _in_formula(text: str) -> bool:
    """Whether an odd number of dollar signs stands in a line, so that it ends within a formula."""
    return text.replace(r"\$", "").count("$") % 2 == 1


def _is_between_bars(text: str, start: int, end: int) -> bool:
    """Whether a box is the inside of an absolute value, and not a cell of a table."""
    if not _BARS.search(text, max(0, start - 8), start) or not _BARS_AFTER.match(text, end):
        return False
    line = text[text.rfind("\n", 0, start) + 1 : start] + (text[end:].partition("\n")[0])
    return line.count("|") <= 2


def _is_exclamation(text: str, end: int, stop: int) -> bool:
    """Whether nothing is attached at all; a "!" inside the formula is a factorial."""
    return not text[end:stop].strip()


def _words(text: str, start: int) -> str:
    """The unit or magnitude that the words behind a value begin with, as text of a formula."""
    lead = _AFTER_FORMULA.match(text, start, start + _NEAR)
    found = _WORDS.match(text, lead.end(), start + _NEAR) if lead else None
    if found is None:
        return ""
    words = found.group()
    while words:
        rest = text[found.start() + len(words) :]
        single = len(words) == 1 and (words.islower() and re.match(r"[\s.}$]*(?:$|[,;\n])", rest) is None)
        if _changes(words) and not single and words != "in":
            return "" if _POWER_OR_QUOTIENT.match(rest) else rf"\text{{ {words}}}"
        words = re.sub(r"(?:[^A-Za-z0-9]+[A-Za-z0-9]+|^[A-Za-z0-9]+)$", "", words).removesuffix(" per")
    return ""


def _changes(words: str) -> bool:
    """Whether words behind a value make another value or quantity of it."""
    return _MAGNITUDE.fullmatch(words) is not None or (bool(words.strip()) and conversion(words, words) is not None)


def _left(text: str, start: int) -> _Left:
    """Where the formula that ends with the box begins, in which no equals sign, comma or word is left."""
    if _NOTHING_BEFORE.match(text[max(0, start - _NEAR) : start][::-1]):
        return _Left(start, 0, 0)
    at = max(0, start - _NEAR)
    tokens = list(_TOKEN.finditer(text, at, start))
    depth = opened = wrapped = 0
    begin, kind = start, "start"
    index = len(tokens) - 1
    while index >= 0:
        token = tokens[index].group()
        if token == "}":
            depth += 1
        elif token == "{":
            depth -= 1
            if depth < 0:
                owner = _owner(tokens, index)
                depth = 0
                if owner in _WRAPPERS or (owner == "{" and begin == start):
                    wrapped += 1
                    kind = "math"
                    break
                opened += 1
            elif depth == 0 and _owner(tokens, index) in _ENDING_COMMANDS:
                kind = "word"
                break  # \text{...} before
        elif depth == 0 and _ends(token, opened):
            if token.isspace():
                previous = tokens[index - 1].group() if index else ""
                if previous in _OPERATORS or (previous.startswith("\\") and previous not in _ENDING_COMMANDS):
                    index -= 1
                    continue
            kind = "math" if token in ("$", r"\(", r"\[", "=", "&", ",") else "word"
            break
        if depth == 0 and not token.isspace() and token not in _SPACING:
            begin = tokens[index].start()
        index -= 1
    if depth > 0:
        return _Left(start, 0, 0)  # braces that are opened further away
    before = text[begin:start]
    if kind != "math" and _ENUMERATOR.fullmatch(before.strip()) and before != before.rstrip():
        return _Left(start, 0, wrapped)  # "a \boxed{5}", "(1) \boxed{5}", "- \boxed{5}": no part of it
    return _Left(begin, opened, wrapped)


def _owner(tokens: list[re.Match[str]], brace: int) -> str:
    """The command that a group belongs to; for a second argument the same; "{" for none."""
    index = brace - 1
    while index >= 0 and tokens[index].group().isspace():
        index -= 1
    if index >= 0 and tokens[index].group() == "}":
        depth = 1
        while index > 0 and depth:
            index -= 1
            depth += {"}": 1, "{": -1}.get(tokens[index].group(), 0)
        index -= 1
    token = tokens[index].group() if index >= 0 else ""
    return token if token.startswith("\\") or token in ("^", "_") else "{"


def _ends(token: str, opened: int) -> bool:
    """Whether a formula ends where this token stands, outside of braces."""
    if token.isspace():
        return "\n" in token
    if token.startswith("\\"):
        return token == "\\" or (token in _ENDING_COMMANDS and token not in (r"\left", r"\right"))
    if token[0].isalnum():
        return len(token) > 1 and token[0].isalpha() and not opened
    return token not in _IN_FORMULA and token != "~"


def _right(text: str, end: int, left: _Left) -> tuple[str, int]:
    """What belongs to the box behind it, and where that ends."""
    opened, wrapped, depth = left.opened, left.wrapped, 0
    stop, dropped = end, end
    spaced = False
    at, limit = end, min(len(text), end + _NEAR)
    kept: list[str] = []
    while at < limit:
        match = _TOKEN.match(text, at)
        assert match is not None
        token = match.group()
        group = _GROUP.match(text, at)
        if group and not depth:
            if not _is_unit(group[1]):
                break
            kept.append(group.group().replace("$", ""))
            at = stop = group.end()
            continue
        if token == "{":
            depth += 1
        elif token == "}":
            if depth:
                depth -= 1
            elif wrapped:
                wrapped -= 1
                at = stop = match.end()
                continue
            elif opened:
                opened -= 1
            else:
                break
        elif token in _SPACING or (token.isspace() and "\n" not in token):
            spaced = True
            kept.append(" ")
            at = match.end()
            continue
        elif not depth and _ends(token, opened):
            if token[0].isalpha() and kept and not "".join(kept).strip() and not spaced:
                break
            if token[0].isalpha() and _dangling(kept):
                kept, stop = [], dropped  # "\boxed{5} - which": a dash
            break
        elif not depth and spaced and not opened and token.isalpha() and not "".join(kept).strip():
            break  # "\boxed{5} a": a word
        kept.append(token)
        at = stop = match.end()
    found = "".join(kept)
    if set(found.strip()) <= set("*([") or found.strip() in ("-", "--", "---"):
        return "", dropped
    return found, stop


def _dangling(kept: list[str]) -> bool:
    found = "".join(kept).strip()
    return bool(found) and (found[-1] in _OPERATORS or found[-1] in "([") and len(found) <= 3


def _is_unit(words: str) -> bool:
    """Whether the words of a group name a unit or a magnitude, not a remark."""
    words = words.strip(" .~\\,")
    if _MAGNITUDE.fullmatch(words):
        return True
    return 0 < len(words.split()) <= _WORDS_OF_UNIT and conversion(words, words) is not None
