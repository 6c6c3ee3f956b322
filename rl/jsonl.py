"""JSON Lines files that survive a kill: a flushed object a line, and readers that forgive a half-written last line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class JsonlWriter:
    """Appends rows to a JSONL file, creating it and its folder if missing."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_unfinished_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write `row` as one line and flush it; a float that is NaN or infinite becomes null, as JSON has neither."""
        clean = {key: _finite_or_none(value) for key, value in row.items()}
        # One write call a row, so that a kill can only leave the last line unfinished. Escaping to ASCII keeps lone
        # surrogates, which a byte-level tokenizer can produce, from making the file undecodable.
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> "JsonlWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read every row of a JSONL file, leaving out a last line that a kill cut short.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than the last is not a JSON object, so the file was damaged by something else.
    """
    path = Path(path)
    # Not splitlines(): it also splits at characters such as U+2028, which may stand inside a JSON string.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda _: None)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}); repair or delete the line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
        rows.append(row)
    return rows


def truncate_after(path: Path | str, step: int) -> None:
    """Keep only the rows whose "step" is at most `step`, so that a resumed run repeats none; no file, no work.

    The new file replaces the old in one rename: a kill leaves either the one or the other.

    Raises:
        ValueError: a row has no "step", or a line other than the last is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return
    rows = read_jsonl(path)
    if missing := next((row for row in rows if "step" not in row), None):
        raise ValueError(f'{path}: a row has no "step": {str(missing)[:80]}')
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _drop_unfinished_line(path: Path) -> None:
    """What a kill or a full disk cut short must not become the middle of a file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
