"""metrics.jsonl as columns of numbers, and a quick look at a long one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from deltarl.rl.dashboard.tail import START, Tail, read_new

Column = npt.NDArray[np.float64]
AXES = {"step": "step", "tokens": "tokens/total", "time": "time/total"}
"""What a chart's x axis can be, by the column that holds it."""


class Columns(NamedTuple):
    """Rows of a run, in the order of the file.

    Attributes:
        values: by metric (and "step"), one number a row; NaN where a row lacks it.
        skipped: lines that are no row: damaged, or without a "step".
    """

    values: Mapping[str, Column] = {}
    skipped: int = 0

    @property
    def rows(self) -> int:
        return len(self.values["step"]) if "step" in self.values else 0

    def last(self, name: str) -> float | None:
        """The newest finite value of a metric."""
        column = self.values.get(name)
        if column is None:
            return None
        known = np.flatnonzero(np.isfinite(column))
        return float(column[known[-1]]) if len(known) else None


def parse_rows(lines: Iterable[bytes]) -> Columns:
    """Columns of JSON lines. A page that only looks must show what is there: damaged lines are counted, not refused."""
    rows: list[dict[str, Any]] = []
    skipped = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append(row)
        else:
            skipped += 1
    names = dict.fromkeys(name for row in rows for name in row)
    return Columns({name: _column([row.get(name) for row in rows]) for name in names}, skipped)


def joined(before: Columns, after: Columns) -> Columns:
    """The rows of both; a metric that one of them lacks is NaN there."""
    if not before.rows:
        return Columns(after.values, before.skipped + after.skipped)
    names = dict.fromkeys((*before.values, *after.values)) if after.rows else before.values
    values = {
        name: np.concatenate(
            [part.values.get(name, np.full(part.rows, np.nan)) for part in (before, after) if part.rows]
        )
        for name in names
    }
    return Columns(values, before.skipped + after.skipped)


def load(path: Path) -> tuple[Columns, Tail]:
    """The whole file; a function of its own so that another process can do it."""
    new = read_new(path, START)
    return parse_rows(new.data.split(b"\n")), new.tail


def peek(path: Path, rows: int) -> Columns:
    """About `rows` of a long file's rows, at even distances in bytes, the first and the last among them.

    The cost does not depend on the length of the file: curves are there at once, while all of it is being read.
    """
    lines: dict[int, bytes] = {}
    with path.open("rb", buffering=4096) as file:
        size = file.seek(0, 2)
        for number in range(rows):
            file.seek(size * number // rows)
            if number:
                file.readline()  # the rest of the line in which the offset lies
            lines.setdefault(file.tell(), file.readline())
        file.seek(max(0, size - 65_536))
        whole = file.read().split(b"\n")[1:-1]
        if whole:
            lines.setdefault(size, whole[-1])
    return parse_rows(line for _, line in sorted(lines.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column(values: list[Any]) -> Column:
    try:
        return np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        return np.array([float(v) if isinstance(v, float) else np.nan for v in values])
