"""Labelled answer pairs for `verifier.py`: reading them, and how each side of a pair is shown to a verifier."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltarl.reward.extract import extract_answer

SET_ASIDE = ("dubious", "policy", "needs_question")
"""Fields that mark a label as debatable; such rows are counted in tables of their own."""

RESPONSE_MARKER = "anywhere"
"""How our verifier finds the answer of a response: by whatever marks it, else as the last formula or number."""


@dataclass(frozen=True)
class Case:
    """One row of a file: is ``pred`` an answer equal to ``gold``?"""

    file: str
    row: dict[str, Any]

    @property
    def expected(self) -> bool:
        return bool(self.row["expected"])

    @property
    def golds(self) -> list[str]:
        """The accepted answers; nearly always one."""
        return self.row.get("golds") or [self.row["gold"]]

    @property
    def set_aside(self) -> str | None:
        """Why the row does not count, or None."""
        return next((field for field in SET_ASIDE if self.row.get(field)), None)


def load_cases(folder: Path) -> list[Case]:
    """Every row of every ``*.jsonl`` of ``folder``, in order.

    Raises:
        SystemExit: there is no such file, or a row lacks a field.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"--cases {folder}: holds no *.jsonl file; give the folder of the labelled pairs")
    cases = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            missing = {"id", "gold", "pred", "expected", "gold_is", "pred_is"} - row.keys()
            if missing:
                raise SystemExit(f"{file}:{number}: no {', '.join(sorted(missing))}")
            cases.append(Case(file.stem, row))
    return cases


def boxed(text: str, kind: str) -> str:
    """A response as it is, a bare answer in a box: what both verifiers can extract from."""
    return text if kind == "response" else rf"\boxed{{{text}}}"


def bare_gold(text: str, kind: str) -> str:
    """A gold as the verifier takes it: the bare answer."""
    if kind == "answer":
        return text
    return extract_answer(text, RESPONSE_MARKER) or text


def group(cases: Sequence[Case], key: Callable[[Case], str | None]) -> dict[str, list[int]]:
    """Indices of the cases by ``key``; None leaves a case out."""
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        name = key(case)
        if name is not None:
            groups.setdefault(name, []).append(index)
    return groups


@dataclass(frozen=True)
class Rates:
    """Right answers accepted and wrong answers accepted, of how many."""

    accepted_right: int
    right: int
    accepted_wrong: int
    wrong: int

    @classmethod
    def of(cls, cases: Sequence[Case], accepted: Sequence[bool], indices: Sequence[int]) -> "Rates":
        right = [accepted[i] for i in indices if cases[i].expected]
        wrong = [accepted[i] for i in indices if not cases[i].expected]
        return cls(sum(right), len(right), sum(wrong), len(wrong))

    def __str__(self) -> str:
        return f"{_percent(self.accepted_right, self.right)} | {_percent(self.accepted_wrong, self.wrong)}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
