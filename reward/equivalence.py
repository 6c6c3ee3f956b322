"""The full judgement of two parsed answers, with mpmath and sympy. Import it in a worker process only."""

from deltarl.reward import exact, numeric, symbolic
from deltarl.reward.decimals import as_decimal
from deltarl.reward.limits import MAX_DIGITS, TooLargeError, UndecidedError, UndefinedError
from deltarl.reward.structure import same_answer
from deltarl.reward.tree import Node


def judge(pred: Node, gold: Node) -> bool:
    """Whether ``pred`` is right where ``gold`` is; see ``structure.same_answer`` for the rules.

    An answer without a value (1/0), or too large to evaluate and not written like gold, is wrong.
    May take long on hostile input: the caller owns the clock.
    """
    try:
        return same_answer(pred, gold, _same_value)
    except (TooLargeError, UndefinedError):
        return False


def _same_value(pred: Node, gold: Node) -> bool:
    """Exact arithmetic, then numeric refutation, then symbolic confirmation."""
    try:
        return exact.same_value(pred, gold, MAX_DIGITS)
    except (UndecidedError, TooLargeError):
        pass
    decimal = as_decimal(gold)
    if decimal is not None:
        return numeric.matches_decimal(pred, decimal)
    return numeric.agree(pred, gold) and symbolic.confirm(pred, gold)
