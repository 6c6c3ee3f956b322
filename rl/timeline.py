"""The timeline of a run: every call of every worker and the driver's phases, in trace.json, and idle fractions.

All times are taken by the driver, on its one clock: a call begins when it is handed to its worker, which has no other,
and ends when the driver learns that it has ended. So it includes the way there and back, the call that a worker died of
is there too, and the clocks of several nodes need not agree. `rl/trace.py` reads the file.
"""

import contextlib
import io
import itertools
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from deltarl.rl.trace import TRACE_FILE

log = logging.getLogger(__name__)

# Once the file is longer, the older half of its spans goes. A span takes about 120 bytes.
MAX_BYTES = 32 * 2**20
FLUSH_AFTER = 1.0  # seconds for which a kill may lose what ended in them

_FLEETS = ("driver", "learner", "rollout", "reward")  # in the order in which Perfetto shows them
_step: ContextVar[int] = ContextVar("step", default=0)


@contextlib.contextmanager
def of_step(step: int) -> Iterator[None]:
    """What begins in here, in this thread, is for that step."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


class Timeline:
    """Takes in when calls begin and end, from whichever thread; see the module."""

    def __init__(self, run_dir: Path, max_bytes: int = MAX_BYTES):
        """Appends to the trace that is there.

        Args:
            max_bytes: bound on the length of the file.
        """
        self._lock, self._ids = threading.Lock(), itertools.count()
        self._open: dict[int, tuple[str, int, str, int, float]] = {}
        self._since = time.monotonic()
        self._busy: dict[str, float] = defaultdict(float)  # by fleet, seconds of calls since then
        self._epoch = time.time() - time.monotonic()  # once, so that a clock that is set does not turn time around
        self._file = _TraceFile(run_dir / TRACE_FILE, max_bytes)
        self._lanes: set[tuple[str, int]] = set()

    def begin(self, fleet: str, index: int, phase: str) -> int:
        """A call begins; returns its number, for `end`."""
        with self._lock:
            number = next(self._ids)
            self._open[number] = fleet, index, phase, _step.get(), time.monotonic()
            return number

    def end(self, number: int) -> None:
        """The call has ended, or its worker has died of it."""
        now = time.monotonic()
        with self._lock:
            fleet, index, phase, step, start = self._open.pop(number)
            self._busy[fleet] += now - max(start, self._since)
            if (fleet, index) not in self._lanes:
                self._lanes.add((fleet, index))
                for event in _names(fleet, index):
                    self._file.add(event)
            ts, dur = round((self._epoch + start) * 1e6), round((now - start) * 1e6)
            lane = {"cat": fleet, "pid": _pid(fleet), "tid": index}
            self._file.add({"name": phase, "ph": "X", "ts": ts, "dur": dur, **lane, "args": {"step": step}})

    @contextlib.contextmanager
    def call(self, fleet: str, index: int, phase: str) -> Iterator[None]:
        """A call as a block; one that raises has ended all the same."""
        number = self.begin(fleet, index, phase)
        try:
            yield
        finally:
            self.end(number)

    def idle(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """`idle/*`: of the time since it was asked for last, the share that the workers of each fleet had no call.

        Args:
            sizes: by fleet, how many of them work at once.
        """
        now = time.monotonic()
        with self._lock:
            window, self._since, since = now - self._since, now, self._since
            busy, self._busy = self._busy, defaultdict(float)
            for fleet, _, _, _, start in self._open.values():
                busy[fleet] += now - max(start, since)
            self._file.flush()
        return {f"idle/{fleet}": max(0.0, 1 - busy[fleet] / (size * window)) for fleet, size in sizes.items()}

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            self._file.close()


class _TraceFile:
    """A JSON array of events, one a line. Its bracket is written last, and readers of the format do without."""

    def __init__(self, path: Path, max_bytes: int):
        self._path, self._max_bytes = path, max_bytes
        self._waiting, self._flushed = list[bytes](), time.monotonic()
        self._file: io.RawIOBase | None = None
        self._replace(_whole_events(path.read_bytes()) if path.exists() else [])

    def add(self, event: Mapping[str, Any]) -> None:
        self._waiting.append(json.dumps(event, separators=(",", ":")).encode())
        if time.monotonic() - self._flushed > FLUSH_AFTER:
            self.flush()

    def flush(self) -> None:
        """Writes what waits, in one call: a kill leaves no half line. A run goes on without a trace that it cannot
        write."""
        self._flushed = time.monotonic()
        text, self._waiting = b"".join(b",\n" + event for event in self._waiting), []
        if self._file is None or not text:
            return
        try:
            self._file.write(text if self._length > len(_START) else text.removeprefix(b",\n"))
            self._length += len(text)
            if self._length > self._max_bytes:
                self._file.close()
                self._replace(_newer_half(_whole_events(self._path.read_bytes())))
        except OSError as error:
            self._file = None
            log.warning("%s can no longer be written, going on without: %s", self._path, error)

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(b"\n]\n")
            self._file.close()
            self._file = None

    def _replace(self, events: list[bytes]) -> None:
        temporary = self._path.with_suffix(".json.tmp")
        text = _START + b",\n".join(events)
        temporary.write_bytes(text)
        temporary.replace(self._path)
        self._file, self._length = self._path.open("ab", buffering=0), len(text)


_START = b"[\n"


def _whole_events(text: bytes) -> list[bytes]:
    lines = [line.rstrip(b",") for line in text.split(b"\n") if line.startswith(b"{")]
    with contextlib.suppress(ValueError):
        if lines:
            json.loads(lines[-1])
            return lines
    return lines[:-1]  # a full disk cut the last one short


def _newer_half(events: list[bytes]) -> list[bytes]:
    names = [event for event in events if b'"ph":"M"' in event]
    spans = [event for event in events if b'"ph":"M"' not in event]
    return list(dict.fromkeys(names)) + spans[len(spans) // 2 :]


def _pid(fleet: str) -> int:
    return _FLEETS.index(fleet) + 1 if fleet in _FLEETS else len(_FLEETS) + 1


def _names(fleet: str, index: int) -> list[dict[str, Any]]:
    """The events that name a worker's lane."""
    lane = {"ph": "M", "pid": _pid(fleet), "tid": index}
    process = {"name": "process_name", **lane, "args": {"name": fleet}}
    order = {"name": "process_sort_index", **lane, "args": {"sort_index": _pid(fleet)}}
    return [process, order, {"name": "thread_name", **lane, "args": {"name": f"{fleet}-{index}"}}]
