"""The calls under way: whoever watches a fleet is told when each begins and ends, and why one cannot begin.

Nobody is told of an end but who waits for it, so `host.wait_any` passes on the ends of what it waited for. A worker
does its calls one after the other: where one has ended, those that it was given before have too.
"""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

import ray


class Watch(Protocol):
    """`rl.Timeline` is one. Both are called from whichever thread calls the worker or waits for it."""

    def begin(self, fleet: str, index: int, phase: str) -> int:
        """Worker `index` of `fleet` was given a call; returns a number for `end`."""
        ...

    def end(self, number: int) -> None:
        """The call has ended, or its worker has died of it."""
        ...


class _Call(NamedTuple):
    watch: Watch | None
    number: int  # the watch's
    worker: tuple[str, int]
    asked: Mapping[str, float]


_lock = Lock()  # samplers ahead of the learner are called from a thread of their own
_under_way: dict[bytes, _Call] = {}  # by the reference's bytes: holding the reference would keep the result in memory


def begun(
    ref: ray.ObjectRef, watch: Watch | None, fleet: str, index: int, phase: str, asked: Mapping[str, float]
) -> None:
    """Notes a call that `ref` will be the result of.

    Args:
        asked: what the worker's actor reserves of Ray's resources.
    """
    number = watch.begin(fleet, index, phase) if watch else 0
    with _lock:
        _under_way[ref.binary()] = _Call(watch, number, (fleet, index), asked)


def ended(ref: ray.ObjectRef) -> None:
    """Notes that the call of `ref` has ended, one way or another; a reference that is no call's is left alone."""
    with _lock:
        last = _under_way.get(ref.binary())
        if last is None:
            return
        for key, call in list(_under_way.items()):  # in the order in which they were begun
            if call.worker == last.worker and call.watch is last.watch:
                del _under_way[key]
                if call.watch:
                    call.watch.end(call.number)
            if call is last:
                return


def no_room(refs: Sequence[ray.ObjectRef]) -> str:
    """A clause that says what actors that these calls wait for ask of the cluster, where it has no place for them."""
    # Ray's public way to an actor's state, ray.util.state, needs the dashboard, which a Ray of our own does without.
    from ray._private import state

    waiting = [call for ref in refs if (call := _under_way.get(ref.binary())) and not _placed(state, ref)]
    if not waiting:
        return ""
    free, there = state.available_resources_per_node().values(), ray.cluster_resources()
    asked = {name: amount for name, amount in waiting[0].asked.items() if amount}
    wants = " and ".join(f"{amount:g} {name}" for name, amount in asked.items())
    has = ", ".join(
        f"{sum(node.get(name, 0.0) for node in free):g} of {there.get(name, 0.0):g} {name} free, "
        f"at most {max((node.get(name, 0.0) for node in free), default=0.0):g} of them on one node"
        for name in asked
    )
    return f"; {len(waiting)} of them have no place: each reserves {wants}, and the cluster has {has}"


def _placed(state: Any, ref: ray.ObjectRef) -> bool:
    actor = state.actors(ref.task_id().actor_id().hex())
    return actor.get("State") != "PENDING_CREATION" or bool(actor.get("Pid"))
