"""What went wrong in a run and was dealt with: `faults.jsonl` in its folder, which outlives every process."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from deltarl.rl.jsonl import JsonlWriter, read_jsonl

log = logging.getLogger(__name__)

FAULTS_FILE = "faults.jsonl"

Kind = Literal["learner", "prompt", "answer"]
METRIC_OF: dict[Kind, str] = {
    "learner": "worker/learner_restarts",
    "prompt": "worker/prompts_set_aside",
    "answer": "worker/answers_set_aside",
}


class Faults:
    """Learners that were lost, and prompts and answers that killed workers, which are not tried again."""

    def __init__(self, run_dir: Path | None = None):
        """
        Args:
            run_dir: where they are written; None keeps them in memory.
        """
        self._file = None if run_dir is None else run_dir / FAULTS_FILE
        self._count: Counter[Kind] = Counter()
        self._prompts: set[tuple[int, ...]] = set()
        self._answers: set[tuple[str, str]] = set()
        if self._file is not None and self._file.exists():
            for row in read_jsonl(self._file):
                self._take(row)

    def learner(self, error: str) -> None:
        """A learner was lost, and the run goes on from a checkpoint."""
        self._add({"kind": "learner", "error": error})

    def prompt(self, token_ids: Sequence[int], text: str) -> None:
        """Sampling answers to it killed workers."""
        log.warning("prompt set aside, as sampling answers to it killed workers: %r", text)
        self._add({"kind": "prompt", "text": text, "token_ids": list(token_ids)})

    def answer(self, prompt: Any, completion: str) -> None:
        """Scoring it killed workers."""
        log.warning("answer left without a score, as scoring it killed workers: %r to %r", completion, prompt)
        self._add({"kind": "answer", "prompt": str(prompt), "completion": completion})

    def has_prompt(self, token_ids: Sequence[int]) -> bool:
        """Whether it was set aside."""
        return tuple(token_ids) in self._prompts

    def has_answer(self, prompt: Any, completion: str) -> bool:
        """Whether it was left without a score."""
        return (str(prompt), completion) in self._answers

    def metrics(self) -> dict[str, int]:
        """How many of each kind since the run started."""
        return {metric: self._count[kind] for kind, metric in METRIC_OF.items()}

    def _add(self, row: dict[str, Any]) -> None:
        self._take(row)
        if self._file is not None:
            with JsonlWriter(self._file) as file:
                file.append({"time": time.time(), **row})

    def _take(self, row: dict[str, Any]) -> None:
        self._count[row["kind"]] += 1
        if row["kind"] == "prompt":
            self._prompts.add(tuple(row["token_ids"]))
        elif row["kind"] == "answer":
            self._answers.add((row["prompt"], row["completion"]))
