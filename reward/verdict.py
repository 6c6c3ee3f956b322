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
    ``decided_by``, and the trees ``pred`` and ``gold``, are None where it did not come to a comparison.
    """

    kind: VerdictKind
    score: float | None
    extracted: str | None
    seconds: float
    detail: str = ""
    decided_by: DecidedBy | None = None
    pred: Node | None = None
    gold: Node | None = None

    @property
    def correct(self) -> bool:
        return self.kind is VerdictKind.RIGHT
