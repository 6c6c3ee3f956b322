"""Values with units, residues and times of day."""

from fractions import Fraction

from deltarl.reward.matching import Same
from deltarl.reward.tree import Clock, Const, Func, Mul, Node, Num, Quantity, Residue, Sym, product
from deltarl.reward.units import SYMBOLS, conversion, is_known
from deltarl.reward.vocabulary import says_of_what

_RADIANS_PER_DEGREE = Mul((Const("pi"), Num(Fraction(1, 180))))
_SCALES = frozenset({"celsius", "fahrenheit"})
_POUNDS = frozenset({"pound", "pound sterling"})
_MINUTES_OF_HALF_DAY = 12 * 60


def same_quantity(pred: Node, gold: Node, same: Same) -> bool:
    """Whether two values, one of them with a unit at least, are the same: a unit may be missing, but not conflict."""
    match pred, gold:
        case Quantity(value, unit), Quantity(gold_value, gold_unit):
            if (
                {unit, gold_unit} == _POUNDS
                or unit == gold_unit
                or ("degree" in (unit, gold_unit) and {unit, gold_unit} & _SCALES)
            ):
                return same(value, gold_value)
            factor = conversion(unit, gold_unit)
            return factor is not None and same(_in_unit(value, factor), gold_value)
        case (Quantity(_, unit), _) | (_, Quantity(_, unit)) if not (is_known(unit) or says_of_what(unit)):
            return False
        case (Quantity(value, unit), Mul((*_, Sym(letter)) as factors)) if _measures_as(unit, letter):
            return same(value, Mul(factors[:-1]))  # 12 m, whose m is no variable beside a metre
        case (Mul((*_, Sym(letter)) as factors), Quantity(gold_value, unit)) if _measures_as(unit, letter):
            return same(Mul(factors[:-1]), gold_value)
        case (Quantity(value, unit), _):
            return same(value, gold) or (unit == "degree" and same(Mul((value, _RADIANS_PER_DEGREE)), gold))
        case (_, Quantity(gold_value, unit)):
            return same(pred, gold_value) or (unit == "degree" and same(pred, Mul((gold_value, _RADIANS_PER_DEGREE))))
    raise AssertionError("one side is a quantity")


def _measures_as(unit: str, letter: str) -> bool:
    return letter in SYMBOLS and conversion(unit, letter) == 1


def _in_unit(value: Node, factor: Fraction) -> Node:
    return Num(value.value * factor) if isinstance(value, Num) else product(Num(factor), value)


def same_residue(pred: Node, gold: Node, same: Same) -> bool:
    r"""Whether two residues are the same class; where only pred has ``\pmod``, its residue is what is compared."""
    match _as_residue(pred), _as_residue(gold):
        case Residue(value, modulus), Residue(gold_value, gold_modulus):
            if not same(modulus, gold_modulus):
                return False
            match value, gold_value, gold_modulus:
                case Num(left), Num(right), Num(size) if size:
                    return ((left - right) / size).denominator == 1
            return same(value, gold_value)
        case (Residue(value, _), _):
            return same(value, gold)
    return False  # one value for a whole class


def _as_residue(node: Node) -> Node:
    r"""``17 \bmod 5`` beside a residue is one."""
    return Residue(*node.args) if isinstance(node, Func) and node.name == "mod" else node


def same_time(pred: Node, gold: Node, same: Same) -> bool:
    """Whether two answers of which one is written as a time of day are the same.

    Two such are the same time: not the same ratio, which ``10:24`` and ``5:12`` would be. Beside anything else, what
    may be a ratio is one. Half of the day may be missing in gold only.
    """
    match pred, gold:
        case Clock(), Clock():
            if _minute_of_day(gold) is None:
                return (pred.hour, pred.minute) == (gold.hour, gold.minute)
            return _minute_of_day(pred) == _minute_of_day(gold)
        case (Clock(), _):
            ratio = _ratio(pred)
            return ratio is not None and same(ratio, gold)
        case (_, Clock()):
            ratio = _ratio(gold)
            return ratio is not None and same(pred, ratio)
    raise AssertionError("one side is a time")


def _minute_of_day(time: Clock) -> int | None:
    """None for a time between one and one that does not say of which half of the day it is."""
    if time.half:
        return time.hour % 12 * 60 + time.minute + (_MINUTES_OF_HALF_DAY if time.half == "pm" else 0)
    return time.hour % 24 * 60 + time.minute if time.hour > 12 or time.hour == 0 else None


def _ratio(time: Clock) -> Num | None:
    return None if time.half or not time.minute else Num(Fraction(time.hour, time.minute))
