"""A run's timeline as the page draws it: lanes of bars."""

from pathlib import Path
from typing import Any

from deltarl.rl.trace import read_trace

MAX_BARS = 100_000


def read_bars(path: Path) -> dict[str, Any]:
    """The newest `MAX_BARS` spans of a trace.json.

    Returns:
        lanes: the workers; names: of phases; and lists of equal length, one entry a bar: lane, name (indices into
        those), start and seconds (from the first bar on), step.

    Raises:
        OSError: the file cannot be read.
    """
    spans = read_trace(path)[-MAX_BARS:]
    lanes = {worker: i for i, worker in enumerate(sorted({span.worker for span in spans}))}
    names = {phase: i for i, phase in enumerate(dict.fromkeys(span.phase for span in spans))}
    origin = min((span.start for span in spans), default=0.0)
    return {
        "lanes": list(lanes),
        "names": list(names),
        "lane": [lanes[span.worker] for span in spans],
        "name": [names[span.phase] for span in spans],
        "start": [round(span.start - origin, 6) for span in spans],
        "seconds": [round(span.end - span.start, 6) for span in spans],
        "step": [span.step for span in spans],
    }
