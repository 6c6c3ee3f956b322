"""A JSONL file of completions to verdicts, in batches, and what came of them in a few lines."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deltarl.reward.jsonl import count_lines, read_rows, text_field
from deltarl.reward.verdict import Verdict
from deltarl.reward.verifier import Verifier

_BATCH = 256


@dataclass(frozen=True)
class ScoredRow:
    """The verdict on one line; ``id`` is the row's own, None if it has none."""

    line: int
    id: Any
    verdict: Verdict

    def as_json(self) -> str:
        name = {} if self.id is None else {"id": self.id}
        return json.dumps({"line": self.line, **name, **verdict_values(self.verdict)})


def outcome(verdict: Verdict) -> str:
    """The kind of a verdict, and its reason where that says more."""
    return verdict.kind if verdict.reason in (None, verdict.kind) else f"{verdict.kind}: {verdict.reason}"


def verdict_values(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values: all but its trees."""
    return {
        "kind": verdict.kind,
        "reason": verdict.reason,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "seconds": verdict.seconds,
        "detail": verdict.detail,
        "decided_by": verdict.decided_by,
    }


@dataclass(frozen=True)
class Fields:
    """What the fields of a row are called; without ``question`` the problem is not looked at."""

    completion: str = "completion"
    gold: str = "answer"
    question: str | None = None


def score_file(path: Path, fields: Fields, verifier: Verifier) -> Iterator[ScoredRow]:
    """The verdict on each row of ``path``, in order; shows progress on standard error.

    Raises:
        InputError: the file cannot be read, or a row lacks a field.
    """
    # In a log file a line now and then is enough.
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=count_lines(path), unit=" answers", desc="scoring", mininterval=interval) as bar:
        rows = read_rows(path)
        while batch := list(itertools.islice(rows, _BATCH)):
            places = [(row, f"{path}:{number}") for number, row in batch]
            completions = [text_field(row, fields.completion, place, "--completion") for row, place in places]
            golds = [text_field(row, fields.gold, place, "--gold") for row, place in places]
            questions: list[str | None] | None = None
            if fields.question is not None:
                questions = [text_field(row, fields.question, place, "--question") for row, place in places]
            verdicts = verifier.score(completions, golds, questions)
            for (number, row), verdict in zip(batch, verdicts, strict=True):
                yield ScoredRow(number, row.get("id"), verdict)
            bar.update(len(batch))


def summary(verdicts: Sequence[Verdict]) -> str:
    """Verdicts by reason and by what decided them, the mean score of those that have one, and the time they took."""
    if not verdicts:
        return "no rows"
    outcomes = Counter(outcome(verdict) for verdict in verdicts)
    paths = Counter(verdict.decided_by.value for verdict in verdicts if verdict.decided_by is not None)
    lines = [f"{count:8,}  {count / len(verdicts):7.2%}  {name}" for name, count in outcomes.most_common()]
    decided = ", ".join(f"{path} {count:,}" for path, count in paths.most_common())
    lines.append(f"decided by: {decided or 'no comparison'}")
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    mean = f"mean score {sum(scores) / len(scores):.4f} over {len(scores):,} answers" if scores else "no answer scored"
    skipped = len(verdicts) - len(scores)
    seconds = sum(verdict.seconds for verdict in verdicts)
    note = f"; {skipped:,} skipped because their gold cannot be parsed" if skipped else ""
    return "\n".join([*lines, f"{mean}{note}; {seconds:.2f} s of judging"])
