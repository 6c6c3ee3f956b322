"""One judgement step by step, for a person who wonders why."""

import dataclasses
from fractions import Fraction
from typing import Any

from deltarl.reward.question import read_question
from deltarl.reward.tree import Node, children
from deltarl.reward.verdict import MEANINGS, DecidedBy, Reason, Verdict, VerdictKind
from deltarl.reward.verifier import Verifier

_MOST_CHARS = 300
_PATHS = {
    DecidedBy.EXACT: "exact arithmetic",
    DecidedBy.NUMERIC: "numeric evaluation, in a worker process",
    DecidedBy.SYMBOLIC: "sympy, in a worker process",
}


def explain(completion: str, gold: str, verifier: Verifier, question: str | None = None) -> list[tuple[str, str]]:
    """The steps from a completion to its verdict, as titles and texts.

    What was read in the question, what was extracted, both trees, what decided, why, and the verdict.
    """
    verdict = verifier.score([completion], [gold], [question])[0]
    steps = [("question", _question(question))] if question else []
    gold_error = verifier.check_gold(gold)
    if gold_error is not None:
        return [*steps, ("gold", f"cannot be parsed: {gold_error}"), *_outcome(verdict)]
    if verdict.reason is Reason.NO_ANSWER:
        hint = f"nothing is marked as {verifier.marker!r} wants it; see --marker, or --bare for the answer alone"
        return [*steps, ("extracted", hint), *_outcome(verdict)]
    if verdict.extracted is None:
        return [*steps, ("extracted", "nothing that counts"), *_outcome(verdict)]
    steps.append(("extracted", _brief(verdict.extracted)))
    if verdict.kind is VerdictKind.UNPARSABLE:
        steps.append(("answer", f"cannot be parsed: {verdict.detail}"))
    for title, tree in (("answer", verdict.pred), ("gold", verdict.gold)):
        if tree is not None:
            steps.append((title, "\n".join(tree_lines(tree))))
    if verdict.decided_by is not None:
        steps.append(("compared by", _PATHS[verdict.decided_by]))
    return [*steps, *_outcome(verdict)]


def _question(text: str) -> str:
    read = read_question(text)
    asks = {
        "a percentage": read.asks_percent,
        "a value": read.asks_value,
        "lowest terms": read.asks_reduced,
        "an expanded form": read.asks_expanded,
        "a factored form": read.asks_factored,
    }
    lines = ["asks for " + (", ".join(name for name, asked in asks.items() if asked) or "nothing in particular")]
    return "\n".join([*lines, *(f"option {letter}: {_brief(option)}" for letter, option in read.options.items())])


def _outcome(verdict: Verdict) -> list[tuple[str, str]]:
    score = "skipped: no score" if verdict.score is None else f"score {verdict.score:g}"
    detail = f" ({verdict.detail})" if verdict.detail else ""
    steps = [("verdict", f"{verdict.kind}{detail}, {score}, in {1e3 * verdict.seconds:.1f} ms")]
    if verdict.reason is not None:
        steps.insert(0, ("reason", f"{verdict.reason}: {MEANINGS[verdict.reason][1]}"))
    return steps


def tree_lines(node: Node, indent: int = 0) -> list[str]:
    """``node`` as an outline: a line for each node with its own values, its sub-trees below and further in."""
    own = [f"{name}={_brief(value)}" for name, value in dataclasses.asdict(node).items() if _is_own(value)]
    lines = [" ".join(["  " * indent + type(node).__name__, *own])]
    for child in children(node):
        lines += tree_lines(child, indent + 1)
    return lines


def _is_own(value: Any) -> bool:
    """Whether a node's field is a plain value, or several, rather than sub-trees, which are dicts here."""
    if isinstance(value, tuple):
        return all(isinstance(item, str) for item in value)
    return value is not None and not isinstance(value, dict)


def _brief(value: object) -> str:
    if isinstance(value, Fraction):
        if max(abs(value.numerator), value.denominator).bit_length() > _MOST_CHARS:
            return "a number of very many digits"  # Python refuses to print some, and nobody reads them
        return str(value)
    text = repr(value)  # which shows a zero-width character for what it is
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}... ({len(text)} characters)"
