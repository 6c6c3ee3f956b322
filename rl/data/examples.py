"""A dataset's rows as checked examples: problem, reference answer, and what reward plug-ins may want to see."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from deltarl.rl.data.rows import Row, iter_rows
from deltarl.rl.problems import Problem


@dataclass(frozen=True)
class Example:
    problem: str
    answer: str
    solution: str | None
    """Target of supervised training, where the data has one."""
    columns: dict[str, Any]
    """The other columns, passed to reward plug-ins by keyword; the same names in every example of a dataset."""


def from_problems(problems: Iterable[Problem]) -> list[Example]:
    """Generated problems as examples with the columns `family`, `level` and `unordered`."""
    return [
        Example(p.problem, p.answer, p.solution, {"family": p.family, "level": p.level, "unordered": p.unordered})
        for p in problems
    ]


def load_file(
    path_or_dataset_id: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    problem_column: str = "problem",
    answer_column: str = "answer",
    solution_column: str | None = None,
    answer_pattern: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    r"""Read and check a dataset.

    Args:
        path_or_dataset_id: a .jsonl, .jsonl.gz or .parquet file, or a HuggingFace dataset (an id, or a local folder).
        split: split of a HuggingFace dataset; None if it has only one.
        subset: configuration of a HuggingFace dataset, such as "main"; None if it has only one.
        problem_column: column with the problem.
        answer_column: column with the reference answer, text or a number.
        solution_column: column with a worked solution; a row may leave it empty.
        answer_pattern: regular expression whose one group is the answer within the answer column, such as
            `####\s*(.+)$`; None takes the column as it is.
        limit: read only so many rows from the start.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the data cannot be read or has no rows, a column is missing, a problem or answer is empty, or the
            pattern is no regular expression with one group or does not match an answer. Rows count from 0.
    """
    source = str(path_or_dataset_id)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    pattern = None if answer_pattern is None else _compile(answer_pattern)
    rows = list(islice(iter_rows(source, split, subset), limit))
    if not rows:
        raise ValueError(f"{source} has no rows")
    names = list(dict.fromkeys(name for row in rows for name in row))
    used = [name for name in (problem_column, answer_column, solution_column) if name is not None]
    for name in used:
        _check_column(name, names, source)
    others = [name for name in names if name not in used]
    examples = []
    for index, row in enumerate(rows):
        where = f"{source}, row {index}"
        problem = _text(row, problem_column, where)
        answer = _text(row, answer_column, where)
        if pattern is not None:
            answer = _extract(pattern, answer, f"{where}, column {answer_column!r}")
        solution = _text(row, solution_column, where) if solution_column and row.get(solution_column) else None
        examples.append(Example(problem, answer, solution, {name: row.get(name) for name in others}))
    return examples


def _compile(answer_pattern: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(answer_pattern)
    except re.error as error:
        raise ValueError(f"answer_pattern {answer_pattern!r} is not a regular expression: {error}") from error
    if pattern.groups != 1:
        raise ValueError(
            f"answer_pattern {answer_pattern!r} has {pattern.groups} groups; it needs exactly one (...) around the "
            "answer, others can be written (?:...)"
        )
    return pattern


def _check_column(name: str, names: Sequence[str], source: str) -> None:
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{source} has no column {name!r}, it has {', '.join(map(repr, names))}{hint}")


def _text(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if value is None or (
        isinstance(value, float) and math.isnan(value)
    ):  # NaN is null in data that went through pandas
        raise ValueError(f"{where}: column {column!r} is null")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: column {column!r} is a {type(value).__name__}, expected text: {str(value)[:60]}")
    if not value.strip():
        raise ValueError(f"{where}: column {column!r} is empty")
    return value


def _extract(pattern: re.Pattern[str], text: str, where: str) -> str:
    match = pattern.search(text)
    answer = (match[1] or "").strip() if match else ""
    if not answer:
        # The end of the text is shown: that is where a worked solution has its answer.
        end = text if len(text) <= 80 else "..." + text[-80:]
        raise ValueError(f"{where}: answer_pattern {pattern.pattern!r} finds no answer in {end!r}")
    return answer
