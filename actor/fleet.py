"""Interchangeable workers: any of them can do any item of work, and a dead or stuck one costs only the item it held."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import ray
from ray.exceptions import ObjectLostError, RayActorError

from deltarl.actor.heartbeat import Heartbeat, Where
from deltarl.actor.host import DIED, StateLostError, WorkerLostError, WorkerSpec, wait_any
from deltarl.actor.slot import Doing, Slot

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # workers one item of work may kill before it is given up

KILLER: Final = object()
"""In the place of the result of an item that killed every worker that tried it."""


class Fleet:
    """`size` actors built from one spec. Not thread-safe, but for `hand_over` and `hand_out`.

    Of a worker that dies, only the item it held is lost, and done by another. Until the cluster has room for its
    replacement, those that are left do the work.
    """

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        size: int,
        stuck_after: float = math.inf,
        heartbeat: float = math.inf,
    ):
        """Starts the workers and waits until all are constructed.

        Args:
            stuck_after: seconds that one call of a worker may take. After them it is killed, and replaced like one that
                died.
            heartbeat: seconds that the process of a worker may stand still, likewise.

        Raises:
            WorkerLostError: a worker's constructor raised.
        """
        self.name, self._stuck_after, self._heartbeat = name, stuck_after, Heartbeat(heartbeat)
        self.restarts = 0
        self._died_last = ""
        # Arguments of the last broadcast of each method, for workers that start later.
        self._state: dict[str, Callable[[], tuple[Any, ...]]] = {}
        self._slots = [Slot(replace(spec, index=index)) for index in range(size)]
        while any(slot.doing is Doing.STARTING for slot in self._slots):
            slot = self._next()
            try:
                slot.result()
            except DIED as error:
                if isinstance(error, RayActorError) and error.actor_init_failed:
                    raise WorkerLostError(
                        f"a worker of {self.name} could not be started, {slot.label}: {error}"
                    ) from error
                self._replace(slot, error)

    def __len__(self) -> int:
        return len(self._slots)

    def map(self, method: str, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`worker.method(*item)` for every item on whichever worker is free; results in the order of the items.

        A worker that dies is replaced, given the last broadcasts again, and its item is done by another.

        Raises:
            WorkerLostError: the same item killed `MAX_DEATHS` workers, or so many died in a row as they were started.
            StateLostError: what was broadcast is gone with the node that had it.
            Exception: whatever the method itself raised.
        """
        results = self.attempt(method, items, MAX_DEATHS)
        if any(result is KILLER for result in results):
            raise WorkerLostError(f"{MAX_DEATHS} {self.name} died on the same item of {method}, last {self._died_last}")
        return results

    def attempt(self, method: str, items: Sequence[tuple[Any, ...]], max_deaths: int) -> list[Any]:
        """As `map`, but with `KILLER` in the place of the result of an item that killed `max_deaths` workers."""
        results: list[Any] = [None] * len(items)
        deaths = [0] * len(items)
        waiting = deque(range(len(items)))
        held: dict[Slot, int] = {}
        for slot in self._slots:
            if slot.doing is Doing.WORKING:  # an item of a call that raised; what it gets now, it does after it
                slot.rest()
        while waiting or held:
            for slot in self._slots:
                if waiting and slot.doing is Doing.NOTHING:
                    held[slot] = item = waiting.popleft()
                    slot.work(method, items[item], self._stuck_after)
            slot = self._next(f"{len(held)} busy, {len(waiting)} items not started, ")
            if slot not in held:
                self._started(slot)
                continue
            item = held.pop(slot)
            try:
                results[item] = slot.result()
            except (*DIED, ObjectLostError) as error:
                deaths[item] += 1
                if deaths[item] == max_deaths:
                    results[item] = KILLER
                else:
                    waiting.appendleft(item)
                self._replace(slot, error)
        return results

    def broadcast(self, method: str, *args: Any) -> None:
        """`worker.method(*args)` on every worker, and on every later replacement before it does anything else.

        Object references among `args` reach the method as the objects they stand for.
        """
        self._state = {**self._state, method: lambda: args}
        self._tell({method: args})

    def hand_over(self, method: str, *args: Any) -> None:
        """Begins a broadcast that does not wait for the work under way; `settle` ends it. Any thread may call it.

        `method` must be one of the spec's `beside`, and may be called with the same arguments twice.
        """
        # First: a worker that has started by now is told here, one that has not will find it in the state.
        self._state = {**self._state, method: lambda: args}
        for slot in list(self._slots):
            if slot.doing is not Doing.STARTING:
                slot.hand_over(method, *args)

    def hand_out(
        self,
        method: str,
        each: Callable[[Mapping[int, Where]], Mapping[int, tuple[Any, ...]]],
        later: str,
        state: Callable[[], tuple[Any, ...]],
    ) -> dict[int, ray.ObjectRef]:
        """Begins `worker.method(*each(started)[i])` on every worker i that has started, beside the work under way;
        `answers` has what comes of it. Workers that start from now on are told `worker.later(*state())` instead.

        Any thread may call it. Both methods must be among the spec's `beside`, and a worker may meet both.

        Args:
            each: arguments for the workers that have started, which it is given as by `ready`.
        """
        self._state = {**self._state, later: state}  # first, as in `hand_over`
        slots = list(self._slots)
        started = {i: slot.where for i, slot in enumerate(slots) if slot.where is not None}
        return {i: slots[i].hand_over(method, *args) for i, args in each(started).items()}

    def answers(self, calls: Mapping[int, ray.ObjectRef], within: float) -> dict[int, Any]:
        """Waits so many seconds for calls that were handed out; what they returned, and nothing of workers that died,
        or took longer.

        Raises:
            Exception: what one raised.
        """
        waiting, results = {call: index for index, call in calls.items()}, {}
        until = time.monotonic() + within
        while waiting:
            doing = f"{len(waiting)} of the {self.name} to take over what was handed out"
            call = wait_any(list(waiting), doing, until, self._end_stopped, self._heartbeat.interval)
            if call is None:
                break
            with suppress(*DIED):
                results[waiting[call]] = ray.get(call)
            del waiting[call]
        return results

    def settle(self) -> None:
        """Waits until every worker has what was broadcast or handed over last, and raises what it had to say to it."""
        if self._state:
            self._tell(self._arguments())

    def remember(self, method: str, args: Callable[[], tuple[Any, ...]]) -> None:
        """Has every worker that starts from now on, or has not done anything yet, told `worker.method(*args())`; as
        `broadcast`, for those alone."""
        self._state[method] = args
        for slot in self._slots:
            if slot.doing is Doing.TOLD_STATE:
                slot.tell({method: args()}, self._stuck_after)

    def ready(self) -> dict[int, Where]:
        """The workers that have nothing to do, by number; a process that took another's place is another."""
        for slot in self._slots:
            if slot.doing is Doing.WORKING:  # as in `attempt`
                slot.rest()
        free = {i: slot.where for i, slot in enumerate(self._slots) if slot.doing is Doing.NOTHING}
        return {i: where for i, where in free.items() if where is not None}

    def gather(self, method: str, args: Mapping[int, tuple[Any, ...]], within: float | None = None) -> dict[int, Any]:
        """`worker.method(*args[i])` on every worker i of these, at once; results by their numbers.

        Args:
            args: by numbers that `ready` gave.
            within: seconds that it may take, if not as long as any call.

        Returns:
            Nothing of those that died, or took longer and were killed. Others take their places.

        Raises:
            StateLostError, Exception: as `map`.
        """
        telling = {self._slots[index]: index for index in args}
        for slot, index in telling.items():
            slot.work(method, args[index], self._stuck_after if within is None else within)
        results = {}
        while telling:
            slot = self._next(f"{len(telling)} to {method}, ")
            if slot not in telling:
                self._started(slot)
                continue
            index = telling.pop(slot)
            try:
                results[index] = slot.result()
            except DIED as error:
                self._replace(slot, error)
            except ObjectLostError as error:
                raise StateLostError(
                    f"what the {self.name} are to be told is gone with the node that had it"
                ) from error
        return results

    def pids(self) -> list[int]:
        """Process ids of the workers, when all have started."""
        while any(slot.doing is Doing.STARTING for slot in self._slots):
            self._started(self._next())
        return [slot.where.pid for slot in self._slots if slot.where is not None]

    def close(self) -> None:
        """Ends the workers."""
        for slot in self._slots:
            slot.end()

    def _next(self, also: str = "") -> Slot:
        """Waits until one of the workers has done what it was given, or died, or was ended because it stood still."""
        while True:
            active = {slot.call: slot for slot in self._slots if slot.call is not None}
            until = min(slot.deadline for slot in active.values())
            starting = sum(slot.doing is Doing.STARTING for slot in active.values())
            doing = f"{self.name}: {also}{starting} of {len(self)} starting"
            ref = wait_any(list(active), doing, until, self._end_stopped, self._heartbeat.interval)
            if ref is not None:
                return active[ref]
            for slot in active.values():
                if slot.deadline <= time.monotonic():
                    was = self.name, slot.what, slot.within, slot.label
                    log.warning("one of the %s is stuck: %s took over %g s; killing it, %s", *was)
                    slot.deadline = math.inf
                    slot.end()

    def _end_stopped(self) -> None:
        slots = {slot.where: slot for slot in self._slots if slot.where is not None}
        for where in self._heartbeat.stopped(list(slots)):
            was = self.name, where.pid, slots[where].label
            log.warning("one of the %s stands still (process %d was stopped); killing it, %s", *was)
            slots[where].end()

    def _arguments(self) -> dict[str, tuple[Any, ...]]:
        return {method: args() for method, args in self._state.items()}

    def _tell(self, state: Mapping[str, tuple[Any, ...]]) -> None:
        telling = set[Slot]()
        for slot in self._slots:
            # One that is being told an older state hears this afterwards; one that starts is told when it has.
            if slot.doing is not Doing.STARTING:
                slot.tell(state, self._stuck_after)
                telling.add(slot)
        while telling:
            slot = self._next(f"{len(telling)} to {', '.join(state)}, ")
            self._started(slot)
            if slot.doing is not Doing.TOLD_STATE:
                telling.discard(slot)

    def _started(self, slot: Slot) -> None:
        """Takes a worker that has been constructed, or told something, a step further."""
        was = slot.doing
        try:
            slot.result()
        except DIED as error:
            self._replace(slot, error)
        except ObjectLostError as error:
            raise StateLostError(f"what the {self.name} are to be told is gone with the node that had it") from error
        else:
            if was is Doing.STARTING and self._state:
                slot.tell(self._arguments(), self._stuck_after)

    def _replace(self, slot: Slot, error: Exception) -> None:
        """Starts another worker; it may die on the way like any other."""
        if slot.is_of_another(error):
            raise StateLostError(f"who was to tell the {self.name} something has died") from error
        if slot.deaths_at_start == MAX_DEATHS:
            raise WorkerLostError(f"{MAX_DEATHS} new {self.name} in a row died while they were started") from error
        self.restarts += 1
        self._died_last = slot.label
        who = len(self), self.name, slot.label
        log.warning("one of %d %s died; starting another and reissuing its work: %s", *who)
        slot.end()
        slot.start()
