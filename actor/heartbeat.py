"""Signs of life: where the processes of workers are, which of them were stopped, and an end to those that were.

A worker is asked nothing. An answer would need a thread of its own beside its work: Ray then moves the work off the
main thread, where plug-ins that set alarms cannot run, and a busy worker that holds Python's lock for long would not
answer either. What is looked at is what the operating system says of its process, on the worker's own node.
"""

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOOKS = 4  # in a row that must find a process stopped
ANSWER_S = 10.0  # that a node may take to say how its processes are


class Where(NamedTuple):
    """A process: its node in Ray, its number, and when it was started, as numbers are used again."""

    node: str
    pid: int
    started: float


def whereabouts(hosted: Any) -> Where:
    """Of the process that calls it; `worker.__ray_call__.remote(whereabouts)` is that of a worker."""
    pid = os.getpid()
    return Where(ray.get_runtime_context().get_node_id(), pid, psutil.Process(pid).create_time())


class Heartbeat:
    """Finds the workers whose process stands still: SIGSTOP, say, by a user, a batch system or a debugger left alone.

    One that works is left alone however long it takes, and however little of the machine it gets.
    """

    def __init__(self, patience: float):
        """
        Args:
            patience: seconds that a process may stand still; `stopped` is to be called every `interval` of them.
        """
        self.interval = patience / LOOKS
        self._found: Counter[Where] = Counter()  # looks in a row at which a process was stopped

    def stopped(self, places: Sequence[Where]) -> list[Where]:
        """Those of these that stood still at the last `LOOKS` looks. Looks are counted, and not the time between them,
        so that a driver which stood still itself accuses nobody."""
        now = {place for place, is_stopped in _on_nodes(_are_stopped, places) if is_stopped}
        self._found = Counter({place: self._found[place] + 1 for place in now})
        return [place for place, looks in self._found.items() if looks >= LOOKS]


def kill_stopped(places: Iterable[Where]) -> None:
    """Ends those of the processes that stand still, as `kill -9` does. `ray.kill` asks a process to end itself, which
    these never do; of the others, whose end Ray would not expect, it is the quieter way."""
    list(_on_nodes(_kill_stopped, list(places)))


def _on_nodes(look: Any, places: Sequence[Where]) -> Iterable[tuple[Where, Any]]:
    """Each place with what `look` says of it on its node; those of nodes that do not answer are left out."""
    by_node: dict[str, list[Where]] = defaultdict(list)
    for place in places:
        by_node[place.node].append(place)
    here = ray.get_runtime_context().get_node_id()
    asked = {}
    for node, there in by_node.items():
        if node != here:
            options = {
                "num_cpus": 0,
                "max_retries": 0,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node, False),
            }
            asked[node] = _remote(look).options(**options).remote(there)
    for node, there in by_node.items():
        try:
            found = look(there) if node == here else ray.get(asked[node], timeout=ANSWER_S)
        except (RayError, GetTimeoutError):  # the node is gone; Ray will say so of its workers too
            continue
        yield from zip(there, found, strict=True)


@cache
def _remote(look: Any) -> Any:
    """Once for each function: Ray keeps every one it is given, for the life of the job."""
    return ray.remote(look)


def _are_stopped(places: Sequence[Where]) -> list[bool]:
    return [_is_stopped(place) for place in places]


def _is_stopped(place: Where) -> bool:
    process = _process(place)
    try:
        return process is not None and process.status() == psutil.STATUS_STOPPED
    except psutil.Error:  # it ended meanwhile
        return False


def _kill_stopped(places: Sequence[Where]) -> list[None]:
    for place in places:
        if _is_stopped(place) and (process := _process(place)) is not None:
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                process.kill()
    return [None] * len(places)


def _process(place: Where) -> psutil.Process | None:
    try:
        process = psutil.Process(place.pid)
        return process if process.create_time() == place.started else None
    except psutil.NoSuchProcess:
        return None
