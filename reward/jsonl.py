"""JSON Lines files as the commands read them: every complaint names the file, the line and what to do."""

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """A file or value the user gave cannot be used; the message says why and what to do."""


def count_lines(path: Path) -> int:
    """Lines of ``path``, for a progress bar. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line number and object of each line that is not blank. Raises InputError."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse(line, f"{path}:{number}")
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); give one JSON object on each line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}; give one JSON object on each line")
    return row


def text_field(row: Mapping[str, Any], name: str, where: str, option: str) -> str:
    """The text ``row`` holds under ``name``; ``option`` is what the user sets to name another field.

    Raises:
        InputError: there is no such field, or it holds something other than text.
    """
    if name not in row:
        near = get_close_matches(name, row, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{where}: no field {name!r}; {hint}it has {', '.join(sorted(row))}: choose with {option}")
    value = row[name]
    if not isinstance(value, str):
        raise InputError(f"{where}: field {name!r} is a {type(value).__name__}; it must be text: choose with {option}")
    return value
