"""Collections: in order, in any order, by name, in proportion."""

from collections.abc import Callable, Sequence

from deltarl.reward.tree import ZERO, Equation, Node, Seq, Sym, product

Same = Callable[[Node, Node], bool]
"""Decides whether answer ``pred`` is right where ``gold`` is; the order matters."""


def same_in_order(preds: Sequence[Node], golds: Sequence[Node], same: Same) -> bool:
    return len(preds) == len(golds) and all(map(same, preds, golds))


def same_in_any_order(preds: Sequence[Node], golds: Sequence[Node], same: Same) -> bool:
    """Whether a one-to-one matching exists. Greedy is not enough: rounding makes equality intransitive."""
    if len(preds) != len(golds):
        return False
    if preds == golds and same_in_order(preds, golds, same):
        return True  # the commonest case, and the others take a comparison for each pair
    candidates = [[j for j, gold in enumerate(golds) if same(pred, gold)] for pred in preds]
    owner: dict[int, int] = {}

    def assign(pred: int, visited: set[int]) -> bool:
        for gold in candidates[pred]:
            if gold not in visited:
                visited.add(gold)
                if gold not in owner or assign(owner[gold], visited):
                    owner[gold] = pred
                    return True
        return False

    return all(assign(pred, set()) for pred in range(len(preds)))


def same_ratio(preds: Sequence[Node], golds: Sequence[Node], same: Same) -> bool:
    """Whether the terms are proportional, zeros standing where zeros stand."""
    if len(preds) != len(golds):
        return False
    zeros = [(same(pred, ZERO), same(gold, ZERO)) for pred, gold in zip(preds, golds, strict=True)]
    if any(pred != gold for pred, gold in zeros) or all(pred for pred, _ in zeros):
        return False
    at = zeros.index((False, False))
    return all(
        same(product(pred, golds[at]), product(gold, preds[at])) for pred, gold in zip(preds, golds, strict=True)
    )


def same_list(pred: Seq, gold: Seq, same: Same) -> bool:
    """Whether two lists or sets are the same: without names in any order, with names value by value."""
    items, gold_items = _by_solution(pred.items), _by_solution(gold.items)
    name, gold_name = _one_name(items), _one_name(gold_items)
    if name == gold_name != "":
        return same_in_any_order(_values(items), _values(gold_items), same)  # x_1 = 1, x_2 = 2 as x = 1 or x = 2
    names, gold_names = _names(items), _names(gold_items)
    if gold_names and not _any_equation(items):
        return same_in_order(items, gold_items, same)  # x = 1, y = 2 as 1, 2
    if len(names) > 1 and not _any_equation(gold_items) and not _are_numbered(names):
        return same_in_order(_in_order_of_names(items, names), gold_items, same)
    return same_in_any_order(items, gold_items, same) or same_in_any_order(expanded(items), expanded(gold_items), same)


def same_named_tuple(named: Seq, values: Seq, compare: Callable[[Sequence[Node], Sequence[Node]], bool]) -> bool:
    """Whether ``x = 1, y = 2`` says what ``(1, 2)`` does: only if its names come in the order of the alphabet."""
    names = _names(named.items)
    return bool(names) and names == sorted(names) and compare(named.items, values.items)


def expanded(items: Sequence[Node]) -> list[Node]:
    """``(f(n), g(n)) = (n, 1)`` in a list of equations as the two equations it is."""
    found: list[Node] = []
    for item in items:
        match item:
            case Equation((Seq("tuple", names), Seq("tuple", values))) if len(names) == len(values):
                found += [Equation(pair) for pair in zip(names, values, strict=True)]
            case _:
                found.append(item)
    return found


def _names(items: Sequence[Node]) -> list[str]:
    """The variables of ``x = 1, y = 2`` if that is what it is and they are all different."""
    names = [item.sides[0].name for item in items if isinstance(item, Equation) and isinstance(item.sides[0], Sym)]
    return names if len(set(names)) == len(items) else []


def _any_equation(items: Sequence[Node]) -> bool:
    return any(isinstance(item, Equation) for item in items)


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether the names are x_1, x_2, ...: values of one thing."""
    return all("_" in name for name in names) and len({name.partition("_")[0] for name in names}) == 1


def _one_name(items: Sequence[Node]) -> str:
    """What all items give a value of: x for ``x = 1, x = 2`` and for ``x_1 = 1, x_2 = 2``."""
    names = [item.sides[0].name for item in items if isinstance(item, Equation) and isinstance(item.sides[0], Sym)]
    if len(names) < len(items) or not names:
        return ""
    return names[0].partition("_")[0] if len(set(names)) == 1 or _are_numbered(names) else ""


def _values(items: Sequence[Node]) -> list[Node]:
    return [item.sides[-1] if isinstance(item, Equation) else item for item in items]


def _in_order_of_names(items: Sequence[Node], names: Sequence[str]) -> Sequence[Node]:
    """Neighbours in the alphabet (x, y and a, b, c) have an order; that of others is the order in which they come."""
    ordered = sorted(names)
    single = all(len(name) == 1 for name in names)
    if single and ord(ordered[-1]) - ord(ordered[0]) == len(names) - 1:
        return [item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: pair[0])]
    return items


def _by_solution(items: Sequence[Node]) -> Sequence[Node]:
    """``p = 5, q = 2, p = 7, q = 2`` as (5, 2), (7, 2): the tuples of values by name."""
    names = [item.sides[0].name for item in items if isinstance(item, Equation) and isinstance(item.sides[0], Sym)]
    if len(names) != len(items) or len(set(names)) in (0, 1, len(names)):
        return items
    size = len(set(names))
    if len(names) % size or names != names[:size] * (len(names) // size) or names[:size] != sorted(names[:size]):
        return items
    values = [item.sides[-1] for item in items if isinstance(item, Equation) and len(item.sides) == 2]
    if len(values) != len(items):
        return items
    return [Seq("tuple", tuple(values[at : at + size])) for at in range(0, len(values), size)]
