"""What the verifier says about one answer."""

from dataclasses import dataclass
from enum import StrEnum


class VerdictKind(StrEnum):
    """Every way a judgement can end; each is counted, none is an exception."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """The judgement of one completion.

    ``score`` is 1.0 for a right answer, 0.0 for every other outcome, and None where the sample must be skipped
    because its *gold* cannot be parsed. ``seconds`` is the wall time spent judging, without waiting for a worker.
    """

    kind: VerdictKind
    score: float | None
    extracted: str | None
    seconds: float
    detail: str = ""
