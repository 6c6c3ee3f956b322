"""JSON Lines files, gzipped or not, as the commands read them: complaints name the file, the line and what to do."""

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, cast


class InputError(ValueError):
    """A file or value the user gave cannot be used; the message says why and what to do."""


def count_lines(path: Path) -> int:
    """Lines of ``path``, for a progress bar. Raises InputError if it cannot be read."""
    try:
        with _open(path) as file:
            return sum(1 for _ in file)
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line number and object of each line that is not blank. Raises InputError."""
    try:
        with _open(path) as file:
            for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8"), 1):
                if line.strip():
                    yield number, _parse(line, f"{path}:{number}")
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _unreadable(path: Path, error: OSError | EOFError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else None
    return InputError(f"cannot read {str(path)!r}: {reason or error}")


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

    An integer counts as the text it is written as, a list of chat messages as what the last of them says.

    Raises:
        InputError: there is no such field, or it holds something else.
    """
    if name not in row:
        near = get_close_matches(name, row, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{where}: no field {name!r}; {hint}it has {', '.join(sorted(row))}: choose with {option}")
    value = row[name]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        # A fraction too: as text, 0.50 says how exactly it is known, and as a number it is 0.5.
        written = json.dumps(row[name])[:40]
        raise InputError(f"{where}: field {name!r} is {written}; make it text, or choose another field with {option}")
    return value
