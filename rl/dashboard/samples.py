"""samples.jsonl by step, split, verdict and text, without holding the texts; answers to the same prompt compared."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deltarl.rl.dashboard.tail import START, Tail, read_new

PAGE_SIZE = 20
MAX_TEXT = 20_000
"""Characters of a prompt or completion that a page shows."""
MAX_WORDS = 1_500
"""Longer answers are shown side by side without marks: the comparison takes time that grows with the square."""


class Place(NamedTuple):
    """Where a sample stands in the file, and what it is filtered by."""

    offset: int
    length: int
    step: int
    split: str
    kind: str
    prompt: int


class Wanted(NamedTuple):
    """What a reader asks for; None and "" are any."""

    step: int | None = None
    split: str = ""
    verdict: str = ""
    text: str = ""


@dataclass
class SampleIndex:
    """Places of a run's samples; `refresh` adds what was written since."""

    path: Path
    tail: Tail = START
    places: list[Place] = field(default_factory=list)

    def refresh(self) -> None:
        """Raises OSError if the file cannot be read."""
        new = read_new(self.path, self.tail)
        if new.restarted:
            self.places.clear()
        offset = new.tail.offset - len(new.data)
        for line in new.data.split(b"\n")[:-1]:
            if row := _row(line):
                prompt = hash(str(row.get("prompt")))
                kind, split = str(row.get("kind")), str(row.get("split"))
                self.places.append(Place(offset, len(line), int(row["step"]), split, kind, prompt))
            offset += len(line) + 1
        self.tail = new.tail

    def facets(self) -> dict[str, list[Any]]:
        """What there is to choose from: steps, splits and verdicts."""
        return {
            "steps": sorted({place.step for place in self.places}),
            "splits": sorted({place.split for place in self.places}),
            "verdicts": sorted({place.kind for place in self.places}),
        }

    def find(self, wanted: Wanted, page: int) -> tuple[int, list[dict[str, Any]]]:
        """Number of samples that fit and those of one page, newest first; pages count from 0."""
        fit = [place for place in reversed(self.places) if _fits(place, wanted)]
        if wanted.text:
            needle = wanted.text.lower()
            fit = [p for p, row in zip(fit, self.read(fit), strict=True) if needle in _haystack(row)]
        return len(fit), [_clipped(row) for row in self.read(fit[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])]

    def read(self, places: Sequence[Place]) -> Iterable[dict[str, Any]]:
        """The rows at these places; {} where the file has changed under them."""
        with self.path.open("rb") as file:
            for place in places:
                file.seek(place.offset)
                yield _row(file.read(place.length)) or {}

    def first_of(self, step: int) -> dict[int, Place]:
        """By prompt, the first sample of a step."""
        found: dict[int, Place] = {}
        for place in self.places:
            if place.step == step:
                found.setdefault(place.prompt, place)
        return found


def compare(a: SampleIndex, step_a: int, b: SampleIndex, step_b: int, only: str, page: int) -> dict[str, Any]:
    """Answers at two steps (of one run or two) to the prompts that both have.

    Args:
        only: "fixed" (right at b, not at a), "broken" (the reverse), "changed" (another text), or "" for all.
    """
    first, second = a.first_of(step_a), b.first_of(step_b)
    common = [prompt for prompt in first if prompt in second]
    rows_a, rows_b = (list(x.read([f[p] for p in common])) for x, f in ((a, first), (b, second)))
    pairs = [(x, y) for x, y in zip(rows_a, rows_b, strict=True) if x and y and _counts(x, y, only)]
    shown = [(_clipped(x), _clipped(y)) for x, y in pairs[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]]
    return {
        "common": len(common),
        "total": len(pairs),
        "fixed": sum(_counts(x, y, "fixed") for x, y in zip(rows_a, rows_b, strict=True)),
        "broken": sum(_counts(x, y, "broken") for x, y in zip(rows_a, rows_b, strict=True)),
        "pairs": [{"a": x, "b": y, "diff": word_diff(str(x["completion"]), str(y["completion"]))} for x, y in shown],
    }


def word_diff(a: str, b: str) -> list[tuple[str, str, str]] | None:
    """Stretches (equal, delete, insert or replace; text in `a`; text in `b`), or None where it would take too long."""
    words_a, words_b = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (a, b))
    if max(len(words_a), len(words_b)) > MAX_WORDS:
        return None
    matcher = difflib.SequenceMatcher(None, words_a, words_b, autojunk=False)
    return [(tag, "".join(words_a[i:j]), "".join(words_b[k:m])) for tag, i, j, k, m in matcher.get_opcodes()]


def _row(line: bytes) -> dict[str, Any] | None:
    try:  # json, not pydantic's faster reader: that one refuses lone surrogates, which a model can write
        row = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _fits(place: Place, wanted: Wanted) -> bool:
    return (
        wanted.step in (None, place.step)
        and wanted.split in ("", place.split)
        and (wanted.verdict in ("", place.kind) or (wanted.verdict == "not right" and place.kind != "right"))
    )


def _counts(a: dict[str, Any], b: dict[str, Any], only: str) -> bool:
    before, after = a.get("kind") == "right", b.get("kind") == "right"
    if only == "changed":
        return a.get("completion") != b.get("completion")
    return {"fixed": after and not before, "broken": before and not after}.get(only, True)


def _haystack(row: dict[str, Any]) -> str:
    return "\n".join(str(row.get(key, "")) for key in ("prompt", "completion", "gold", "extracted")).lower()


def _clipped(row: dict[str, Any]) -> dict[str, Any]:
    half = MAX_TEXT // 2
    return {
        key: f"{value[:half]}\n[... {len(value) - MAX_TEXT:,} characters left out ...]\n{value[-half:]}"
        if isinstance(value, str) and len(value) > MAX_TEXT
        else value
        for key, value in ({"prompt": "", "completion": ""} | row).items()
    }
