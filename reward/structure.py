"""What it means for two answers to be the same, by the type of the gold: the expressions inside are another's job."""

from collections.abc import Sequence

from deltarl.reward.equations import same_equation
from deltarl.reward.matching import (
    Same,
    expanded,
    same_in_any_order,
    same_in_order,
    same_list,
    same_named_tuple,
    same_ratio,
)
from deltarl.reward.quantities import same_quantity, same_residue, same_time
from deltarl.reward.sets import same_set
from deltarl.reward.tree import (
    Add,
    Based,
    Clock,
    Const,
    Equation,
    Interval,
    Inverse,
    Matrix,
    Mul,
    Node,
    Num,
    Pow,
    Quantity,
    Residue,
    Scalar,
    Seq,
    Sym,
    Text,
    contains,
    free_symbols,
    is_scalar,
    is_set_like,
    substitute,
)
from deltarl.reward.wording import same_words

_PARAMETERS = frozenset({"k", "l", "m", "n"})
_ADDED_CONSTANTS = frozenset({"C", "c", "C_1", "c_1"})
_PI = frozenset({"pi"})
_VOWELS = frozenset("aeiouAEIOU")
_FEWEST_LETTERS = 3


def same_answer(pred: Node, gold: Node, same_value: Same) -> bool:
    """Whether answer ``pred`` is right where ``gold`` is.

    Tuples are ordered, lists and sets are not (repetitions count), sets of reals may be written as intervals, solved
    inequalities or set-builders with ends open or closed alike, units may be missing on one side but not conflict,
    ``x = 5`` stands for 5 but every link of a chain must hold, and an equation or inequality may be multiplied by a
    constant. Several values where gold is one are wrong.

    Args:
        same_value: decides whether scalar ``pred`` equals scalar ``gold``; the order matters for decimals.
    """

    def same(pred: Node, gold: Node) -> bool:
        if is_scalar(pred) and is_scalar(gold):
            if pred is gold:
                return same_value(pred, gold)
            if isinstance(pred, Mul) and isinstance(gold, Mul) and _is_another_word(pred, gold):
                return False
            return same_value(_renamed_parameter(pred, gold), gold)
        return _same_structure(pred, gold, same)

    return same(pred, gold)


def _same_structure(pred: Node, gold: Node, same: Same) -> bool:
    """``same_answer`` where one of the two is not a scalar."""
    match pred, gold:
        case Equation((Sym() as name, Seq("set") as values)), Seq(_, items):
            names = {item.sides[0] for item in items if isinstance(item, Equation)}
            return names <= {name} and same(values, gold)  # x in {1, 3}
    if isinstance(pred, Equation) and isinstance(gold, Seq) and gold.kind == "list":
        return same_in_any_order(expanded([pred]), expanded(gold.items), same)
    if isinstance(pred, Equation) or isinstance(gold, Equation):
        return same_equation(pred, gold, same)
    if isinstance(pred, Quantity) or isinstance(gold, Quantity):
        return same_quantity(pred, gold, same)
    if is_set_like(gold):
        return same_set(pred, gold, same)
    if isinstance(pred, Seq) or isinstance(gold, Seq):
        return _same_sequence(pred, gold, same)
    match pred, gold:
        case Matrix(rows), Matrix(gold_rows):
            return len(rows) == len(gold_rows) and all(
                same_in_order(row, gold_row, same) for row, gold_row in zip(rows, gold_rows, strict=True)
            )
        case Inverse(matrix), Inverse(gold_matrix):
            return same(matrix, gold_matrix)
        case Text(), Text():
            return same_words(pred, gold)
        case (Text(words), Mul(factors)) | (Mul(factors), Text(words)):
            return words == _spelled(factors)  # red
        case Based(), Based():
            return pred == gold
        case (Residue(), _) | (_, Residue()):
            return same_residue(pred, gold, same)
        case (Clock(), _) | (_, Clock()):
            return same_time(pred, gold, same)
    return False


def _same_sequence(pred: Node, gold: Node, same: Same) -> bool:
    """Where one of the two at least is a tuple, list, set or ratio, and gold is not a set of another notation."""
    match gold, pred:
        case Seq("tuple", gold_items), Seq("tuple", items):
            return same_in_order(items, gold_items, same)
        case (Seq("tuple", (low, high)), _) if is_set_like(pred):
            return same_set(pred, Interval(low, high, True, True), same)
        case Seq("ratio", gold_items), Seq("ratio", items):
            return same_ratio(items, gold_items, same)
        case Seq("tuple"), Seq("list"):
            return same_named_tuple(pred, gold, lambda items, golds: same_in_order(items, golds, same))
        case Seq("list"), Seq("tuple"):
            return same_named_tuple(gold, pred, lambda golds, items: same_in_order(items, golds, same))
        case (Seq("set", (gold_item,)), _) if is_scalar(pred):
            return same(pred, gold_item)
        case (_, Seq("set", (item,))) if is_scalar(gold):
            return same(item, gold)
        case (_, Seq("list", decimal=Num() as number)) if is_scalar(gold):
            return same(number, gold)  # 3,14 for 3.14
        case (Seq("list", decimal=Num() as number), _) if is_scalar(pred):
            # 1,5 may well be 1 and 5; 1,22 and 0,5 are hardly two values.
            return ((number.decimals or 0) > 1 or abs(number.value) < 1) and same(pred, number)
        case Seq(gold_kind), Seq(kind):
            return not {"tuple", "ratio"} & {kind, gold_kind} and same_list(pred, gold, same)
        case Seq("set"), _ if is_set_like(pred):
            return same_set(pred, gold, same)
    return False


def _renamed_parameter(pred: Scalar, gold: Scalar) -> Node:
    r"""``pred`` with the integer of a family of angles called as in gold: ``\frac{\pi}{6} + n \pi`` for k.

    So is a constant of integration: c for C.
    """
    if isinstance(pred, (Num, Sym, Const)) or isinstance(gold, (Num, Sym, Const)):
        return pred
    names, gold_names = free_symbols(pred), free_symbols(gold)
    if names == gold_names:
        return pred
    if isinstance(pred, Add) and isinstance(gold, Add):
        odd, gold_odd = names - gold_names, gold_names - names
        if len(odd) == len(gold_odd) == 1 and odd | gold_odd <= _ADDED_CONSTANTS:
            (name,), (gold_name,) = odd, gold_odd
            if Sym(name) in pred.terms and Sym(gold_name) in gold.terms:
                return substitute(pred, {name: Sym(gold_name)})
    if len(names) == len(gold_names) == 1 and names | gold_names <= _PARAMETERS:
        (name,), (gold_name,) = names, gold_names
        if _is_family(gold, Sym(gold_name)) and contains(pred, Const, _PI):
            return substitute(pred, {name: Sym(gold_name)})
    return pred


def _is_family(node: Scalar, integer: Sym) -> bool:
    r"""Whether a rational multiple of ``k \pi`` is added to what does not depend on k, which may be nothing."""
    terms = node.terms if isinstance(node, Add) else (node,)
    steps = [term for term in terms if integer.name in free_symbols(term)]
    if len(steps) != 1 or not isinstance(steps[0], Mul):
        return False
    letters = [factor for factor in steps[0].factors if not _is_rational(factor)]
    return len(letters) == 2 and integer in letters and Const("pi") in letters


def _is_rational(node: Node) -> bool:
    match node:
        case Num() | Pow(Num(), Num()):
            return True
        case Mul(factors):
            return all(map(_is_rational, factors))
    return False


def _is_another_word(pred: Mul, gold: Mul) -> bool:
    """Whether both are runs of letters, gold's may be a word, and pred's is another, such as ``der`` for ``red``.

    A run of three letters or more with a vowel among them may be one: there the order counts. The letters of others
    (``xy``, ``xyz``), and of products with a number or an operator in them, may come in any order.
    """
    word = _spelled(gold.factors)
    return len(word) >= _FEWEST_LETTERS and bool(_VOWELS & set(word)) and _spelled(pred.factors) not in ("", word)


def _spelled(factors: Sequence[Node]) -> str:
    """The word that a product of letters is as well; empty where there are other factors."""
    letters = [factor.name for factor in factors if isinstance(factor, (Sym, Const)) and len(factor.name) == 1]
    return "".join(letters) if len(letters) == len(factors) else ""
