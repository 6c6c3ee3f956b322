"""Reading a run's trace.json: which worker did what, and when.

The file is a Chrome trace in its JSON array form, one event a line, for Perfetto (ui.perfetto.dev) and chrome://tracing.
`rl/timeline.py` writes it, and says where the times are taken.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

TRACE_FILE = "trace.json"


class Span(NamedTuple):
    """One call of one worker, or one phase of the driver.

    Attributes:
        worker: fleet and index, e.g. rollout-0, reward-1, learner-0. driver-0 is the loop, driver-1 what samples and
            scores, which may be ahead of it.
        phase: the method that was called, or the driver's phase as in the metrics time/*.
        step: the step it was for; 0 is before the first.
        start, end: seconds since the epoch, on the driver's clock.
    """

    worker: str
    phase: str
    step: int
    start: float
    end: float

    @property
    def fleet(self) -> str:
        """The worker's name without its index."""
        return self.worker.rpartition("-")[0]


def read_trace(path: Path | str, last_steps: int | None = None) -> list[Span]:
    """The spans of a trace in the order of their ends; also while the run goes on, or after it was killed.

    Args:
        last_steps: only spans of so many of the newest steps.

    Raises:
        FileNotFoundError: there is no such file.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    spans = [span for line in lines if (span := _span(line)) is not None]
    if last_steps is None or not spans:
        return spans
    newest = max(span.step for span in spans)
    return [span for span in spans if span.step > newest - last_steps]


def _span(line: str) -> Span | None:
    """None for what is no span: the array's brackets, the lanes' names, a line that a kill cut short."""
    try:
        event: Any = json.loads(line.strip().strip("[],"))
    except json.JSONDecodeError:
        return None
    if not isinstance(event, dict) or event.get("ph") != "X":
        return None
    start = event["ts"] / 1e6
    worker = f"{event['cat']}-{event['tid']}"
    return Span(worker, event["name"], event["args"]["step"], start, start + event["dur"] / 1e6)
