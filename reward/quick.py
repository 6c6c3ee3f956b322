"""The judgement that needs neither sympy nor a worker: microseconds, and bounded whatever the answer."""

from deltarl.reward import exact
from deltarl.reward.approximate import differ, within
from deltarl.reward.decimals import as_decimal
from deltarl.reward.limits import MAX_FAST_DIGITS, TooLargeError, UndecidedError, UndefinedError
from deltarl.reward.structure import same_answer
from deltarl.reward.tree import Node
from deltarl.reward.verdict import DecidedBy


def judge_quickly(pred: Node, gold: Node) -> tuple[bool, DecidedBy] | None:
    """Whether ``pred`` is right where ``gold`` is, and what told; None where that cannot be told here.

    An answer without a value (1/0) is wrong.
    """
    try:
        return compare_quickly(pred, gold)
    except UndefinedError:
        return False, DecidedBy.EXACT
    except (UndecidedError, TooLargeError):
        return None


def compare_quickly(pred: Node, gold: Node) -> tuple[bool, DecidedBy]:
    """The same, with what stands in the way raised.

    Raises:
        UndecidedError, TooLargeError: it takes more than this.
        UndefinedError: one of them has no value.
    """
    comparison = _QuickComparison()
    return same_answer(pred, gold, comparison.same_value), comparison.decided_by


class _QuickComparison:
    def __init__(self) -> None:
        self.decided_by = DecidedBy.EXACT

    def same_value(self, pred: Node, gold: Node) -> bool:
        """By exact arithmetic; failing that, different if floats with their errors say so."""
        try:
            return exact.same_value(pred, gold, MAX_FAST_DIGITS)
        except UndecidedError:
            self.decided_by = DecidedBy.NUMERIC
            decimal = as_decimal(gold)
            if decimal is not None and decimal.may_be_rounded:
                inside = within(pred, decimal.value, decimal.half_unit)
                if inside is not None:
                    return inside
            elif decimal is None and differ(pred, gold):
                return False
            raise
