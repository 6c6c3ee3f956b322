"""Bounds on what a hostile answer may cost, checked before any computer algebra sees it."""

MAX_ANSWER_CHARS = 1_000
"""Longest answer that is extracted or parsed."""

MAX_NORMALIZED_CHARS = 4_000
"""Unicode normalisation may lengthen an answer; past this it is refused."""

MAX_DEPTH = 50
MAX_NODES = 300
MAX_ITEMS = 50
"""Bounds on a parsed answer: nesting, nodes, and elements of one list, set or tuple."""

MAX_MATRIX_SIDE = 16

MAX_LITERAL_DIGITS = 1_000
"""Digits of a number as written; below CPython's 4,300-digit limit, so converting one never raises."""

MAX_DIGITS = 10_000
"""Digits of any intermediate value a worker computes."""

MAX_FAST_DIGITS = 1_000
"""The same for the caller's own process, where nothing can be killed."""

MAX_FACTORIAL = 1_000

BITS_PER_DIGIT = 3.3219280948873626


class ParseError(ValueError):
    """The answer is not in the grammar, or exceeds a bound; the message is safe to print."""


class LimitError(ParseError):
    """The answer exceeds a bound, whatever else it is."""


class TooLargeError(ArithmeticError):
    """A value would exceed the digit bound, so it is not computed."""


class UndefinedError(ArithmeticError):
    """The expression has no value, e.g. a division by zero."""


class UndecidedError(Exception):
    """Exact arithmetic alone cannot tell whether two values are equal."""
