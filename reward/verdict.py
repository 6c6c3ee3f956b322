"""What the verifier says about one answer."""

from dataclasses import dataclass
from enum import StrEnum

from deltarl.reward.tree import Node


class VerdictKind(StrEnum):
    """Every way a judgement can end; each is counted, none is an exception."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"
    ERROR = "error"


class Reason(StrEnum):
    """Why a judgement ended as it did: a closed set. ``MEANINGS`` says what each means."""

    EQUAL = "equal"
    EQUAL_OPTION = "equal_option"
    EQUAL_PERCENT = "equal_percent"

    DIFFERENT = "different"
    TYPE_MISMATCH = "type_mismatch"
    AMBIGUOUS = "ambiguous"
    UNIT_CONFLICT = "unit_conflict"
    PRECISION = "precision"
    FALSE_CHAIN = "false_chain"

    TAUTOLOGY = "tautology"
    ECHO = "echo"
    UNSIMPLIFIED = "unsimplified"
    UNSOLVED = "unsolved"

    NO_ANSWER = "no_answer"
    EMPTY = "empty"
    UNTERMINATED = "unterminated"
    UNFINISHED_THINKING = "unfinished_thinking"
    TOO_LONG = "too_long"
    RETRACTED = "retracted"

    UNREADABLE = "unreadable"
    LIMITS = "limits"

    TIMEOUT = "timeout"
    CRASH = "crash"
    GOLD_UNREADABLE = "gold_unreadable"


MEANINGS: dict[Reason, tuple[VerdictKind, str]] = {
    Reason.EQUAL: (VerdictKind.RIGHT, "the same as gold"),
    Reason.EQUAL_OPTION: (VerdictKind.RIGHT, "the letter of an option for its text, or the text for its letter"),
    Reason.EQUAL_PERCENT: (VerdictKind.RIGHT, "25 for 25%, or the reverse, where the question asks for a percentage"),
    Reason.DIFFERENT: (VerdictKind.WRONG, "not the same as gold"),
    Reason.TYPE_MISMATCH: (VerdictKind.WRONG, "another kind of thing than gold, say words for a number"),
    Reason.AMBIGUOUS: (VerdictKind.WRONG, "several answers, or a range of them, where gold is one"),
    Reason.UNIT_CONFLICT: (VerdictKind.WRONG, "another unit than gold's"),
    Reason.PRECISION: (VerdictKind.WRONG, "close to gold, but rounded too much or otherwise"),
    Reason.FALSE_CHAIN: (VerdictKind.WRONG, "an equation whose sides are not equal"),
    Reason.TAUTOLOGY: (VerdictKind.WRONG, "an equation of a thing with itself"),
    Reason.ECHO: (VerdictKind.WRONG, "what the question wrote, though gold is written in another way"),
    Reason.UNSIMPLIFIED: (VerdictKind.WRONG, "equal to gold, but not worked out as far as gold and the question ask"),
    Reason.UNSOLVED: (VerdictKind.WRONG, "an integral, sum, limit, gcd or the like left to work out"),
    Reason.NO_ANSWER: (VerdictKind.NO_ANSWER, "nothing marks an answer"),
    Reason.EMPTY: (VerdictKind.NO_ANSWER, "the mark holds nothing"),
    Reason.UNTERMINATED: (VerdictKind.NO_ANSWER, "the last box or tag is never closed"),
    Reason.UNFINISHED_THINKING: (VerdictKind.NO_ANSWER, "<think> is never closed"),
    Reason.TOO_LONG: (VerdictKind.NO_ANSWER, "longer than any answer"),
    Reason.RETRACTED: (VerdictKind.NO_ANSWER, 'the text denies what it names: "definitely not 5", "5 is wrong"'),
    Reason.UNREADABLE: (VerdictKind.UNPARSABLE, "not mathematics that the parser knows"),
    Reason.LIMITS: (VerdictKind.UNPARSABLE, "deeper, larger or with longer numbers than is allowed"),
    Reason.TIMEOUT: (VerdictKind.TIMEOUT, "not decided in time"),
    Reason.CRASH: (VerdictKind.ERROR, "the worker died, of memory for one, or the verifier failed"),
    Reason.GOLD_UNREADABLE: (VerdictKind.ERROR, "the reference answer cannot be parsed: no score"),
}
"""Of every reason the outcome it is a case of, and what it says."""


class DecidedBy(StrEnum):
    """What it took to compare an answer with gold."""

    EXACT = "exact"
    NUMERIC = "numeric"
    SYMBOLIC = "symbolic"


@dataclass(frozen=True)
class Verdict:
    """The judgement of one completion.

    ``score`` is 1.0 for a right answer, 0.0 for every other outcome, and None where the sample must be skipped
    because its *gold* cannot be parsed. ``seconds`` is the wall time spent judging, without waiting for a worker.
    ``decided_by``, and the trees ``pred`` and ``gold``, are None where it did not come to a comparison of the two.
    ``reason`` says why; the verifier always sets it.
    """

    kind: VerdictKind
    score: float | None
    extracted: str | None
    seconds: float
    detail: str = ""
    decided_by: DecidedBy | None = None
    pred: Node | None = None
    gold: Node | None = None
    reason: Reason | None = None

    @property
    def correct(self) -> bool:
        return self.kind is VerdictKind.RIGHT
