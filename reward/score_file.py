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


def verdict_values(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values: all but its trees."""
    return {
        "kind": verdict.kind,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "seconds": verdict.seconds,
        "detail": verdict.detail,
        "decided_by": verdict.decided_by,
    }


def score_file(path: Path, completion_field: str, gold_field: str, verifier: Verifier) -> Iterator[ScoredRow]:
    """The verdict on each row of ``path``, in order; shows progress on standard error.

    Raises:
        InputError: the file cannot be read, or a row lacks a field.
    """
    # In a log file a line now and then is enough.
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=count_lines(path), unit=" answers", desc="scoring", mininterval=interval) as bar:
        rows = read_rows(path)
        while batch := list(itertools.islice(rows, _BATCH)):
            places = [f"{path}:{number}" for number, _ in batch]
            completions = [
                text_field(row, completion_field, place, "--completion")
                for (_, row), place in zip(batch, places, strict=True)
            ]
            golds = [
                text_field(row, gold_field, place, "--gold") for (_, row), place in zip(batch, places, strict=True)
            ]
            for (number, row), verdict in zip(batch, verifier.score(completions, golds), strict=True):
                yield ScoredRow(number, row.get("id"), verdict)
            bar.update(len(batch))


def summary(verdicts: Sequence[Verdict]) -> str:
    """Verdicts by reason and by what decided them, the mean score of those that have one, and the time they took."""
    if not verdicts:
        return "no rows"
    outcomes = Counter(verdict.kind.value for verdict in verdicts)
    paths = Counter(verdict.decided_by.value for verdict in verdicts if verdict.decided_by is not None)
    lines = [f"{count:8,}  {count / len(verdicts):7.2%}  {kind}" for kind, count in outcomes.most_common()]
    decided = ", ".join(f"{path} {count:,}" for path, count in paths.most_common())
    lines.append(f"decided by: {decided or 'no comparison'}")
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    mean = f"mean score {sum(scores) / len(scores):.4f} over {len(scores):,} answers" if scores else "no answer scored"
    skipped = len(verdicts) - len(scores)
    seconds = sum(verdict.seconds for verdict in verdicts)
    note = f"; {skipped:,} skipped because their gold cannot be parsed" if skipped else ""
    return "\n".join([*lines, f"{mean}{note}; {seconds:.2f} s of judging"])
