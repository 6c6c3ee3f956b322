"""The full judgement of two parsed answers, with mpmath and sympy. Import it in a worker process only."""

from deltarl.reward import exact, numeric, symbolic
from deltarl.reward.decimals import as_decimal
from deltarl.reward.limits import MAX_DIGITS, TooLargeError, UndecidedError, UndefinedError
from deltarl.reward.structure import same_answer
from deltarl.reward.tree import Node
from deltarl.reward.verdict import DecidedBy


def judge(pred: Node, gold: Node) -> tuple[bool, DecidedBy]:
    """Whether ``pred`` is right where ``gold`` is, and the last thing it took to tell.

    See ``structure.same_answer`` for the rules. An answer without a value (1/0), or too large to evaluate and not
    written like gold, is wrong. May take long on hostile input: the caller owns the clock.
    """
    comparison = _Comparison()
    try:
        return same_answer(pred, gold, comparison.same_value), comparison.decided_by
    except (TooLargeError, UndefinedError):
        return False, comparison.decided_by


class _Comparison:
    def __init__(self) -> None:
        self.decided_by = DecidedBy.EXACT

    def same_value(self, pred: Node, gold: Node) -> bool:
        """Exact arithmetic, then numeric refutation, then symbolic confirmation."""
        try:
            return exact.same_value(pred, gold, MAX_DIGITS)
        except (UndecidedError, TooLargeError):
            pass
        self.decided_by = DecidedBy.NUMERIC if self.decided_by is DecidedBy.EXACT else self.decided_by
        decimal = as_decimal(gold)
        if decimal is not None:
            return numeric.matches_decimal(pred, decimal)
        if not numeric.agree(pred, gold):
            return False
        self.decided_by = DecidedBy.SYMBOLIC
        return symbolic.confirm(pred, gold)
