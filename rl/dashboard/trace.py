"""A run's trace.json, Chrome trace events, as lanes of bars."""

import json
import math
from pathlib import Path
from typing import Any

from pydantic_core import from_json

TRACE_FILE = "trace.json"
MAX_BYTES = 64 * 2**20
MAX_BARS = 100_000


def read_trace(path: Path) -> dict[str, Any]:
    """Bars by lane, of the newest MAX_BYTES of the file and at most MAX_BARS.

    The file is a JSON array of events or an object with "traceEvents", whole or cut off anywhere.

    Returns:
        lanes: names, one per (pid, tid), in order of their ids; names: of bars; and lists of
        equal length, one entry a bar: lane, name (indices into those), start and seconds (from the first bar on), step
        (None where unknown).

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON.
    """
    events = _events(path)
    bars = [event for event in events if event.get("ph") == "X" and _numbers(event, "ts", "dur")][-MAX_BARS:]
    titles = _titles(events)
    lanes = {key: i for i, key in enumerate(sorted({_lane(bar) for bar in bars}, key=str))}
    names = {name: i for i, name in enumerate(dict.fromkeys(str(bar.get("name", "")) for bar in bars))}
    origin = min((bar["ts"] for bar in bars), default=0)
    return {
        "lanes": [titles.get(key, f"{key[0]}/{key[1]}") for key in lanes],
        "names": list(names),
        "lane": [lanes[_lane(bar)] for bar in bars],
        "name": [names[str(bar.get("name", ""))] for bar in bars],
        "start": [round((bar["ts"] - origin) / 1e6, 6) for bar in bars],
        "seconds": [round(bar["dur"] / 1e6, 6) for bar in bars],
        "step": [_step(bar) for bar in bars],
    }


def _events(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - MAX_BYTES))
        data = file.read()
    if size > MAX_BYTES:  # one event a line, as our writer and most others write them
        lines = (line.strip().rstrip(b",]") for line in data.split(b"\n")[1:])
        found = [_one(line) for line in lines]
    else:
        tree = from_json(data, allow_partial=True) if data.strip() else []
        found = tree.get("traceEvents", []) if isinstance(tree, dict) else tree
    return [event for event in found if isinstance(event, dict)] if isinstance(found, list) else []


def _one(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _titles(events: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Names that "M" events give threads, with their process's before them where it has one."""
    processes: dict[str, str] = {}
    threads: dict[tuple[str, str], str] = {}
    for event in events:
        args = event.get("args")
        if event.get("ph") != "M" or not isinstance(args, dict):
            continue
        if event.get("name") == "process_name":
            processes[str(event.get("pid", ""))] = str(args.get("name"))
        elif event.get("name") == "thread_name":
            threads[_lane(event)] = str(args.get("name"))
    return {key: f"{processes[key[0]]} · {name}" if key[0] in processes else name for key, name in threads.items()}


def _lane(event: dict[str, Any]) -> tuple[str, str]:
    return str(event.get("pid", "")), str(event.get("tid", ""))


def _numbers(event: dict[str, Any], *names: str) -> bool:
    return all(isinstance(event.get(name), int | float) and math.isfinite(event[name]) for name in names)


def _step(event: dict[str, Any]) -> int | None:
    args = event.get("args")
    step = args.get("step") if isinstance(args, dict) else None
    return step if isinstance(step, int) else None
