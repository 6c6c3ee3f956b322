"""Interchangeable workers: any of them can do any item of work, and a dead or stuck one costs only the item it held."""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from deltarl.actor.host import WorkerSpec, wait_all, wait_any

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # workers one item of work may kill before it is given up


class WorkerLostError(RuntimeError):
    """Workers cannot be started, or keep dying on the same work."""


class Fleet:
    """`size` actors built from one spec. Not thread-safe."""

    def __init__(self, name: str, spec: WorkerSpec, size: int, stuck_after: float = math.inf):
        """Starts the workers and waits until all are constructed.

        Args:
            stuck_after: seconds that one call of a worker may take. After them it is killed, and replaced like one that
                died.

        Raises:
            WorkerLostError: a worker's constructor raised.
        """
        self.name, self._stuck_after = name, stuck_after
        self._specs = [replace(spec, index=index) for index in range(size)]
        self.restarts = 0
        self._state: dict[str, tuple[Any, ...]] = {}  # last broadcast of each method, for workers that start later
        self._workers: list[Any] = [spec.spawn() for spec in self._specs]
        ready = [self._call(index, "__ray_ready__") for index in range(size)]
        wait_all(ready, f"{size} {name} to start")
        for index, started in enumerate(ready):
            self._constructed(index, started)

    def __len__(self) -> int:
        return len(self._workers)

    def map(self, method: str, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`worker.method(*item)` for every item on whichever worker is free; results in the order of the items.

        A worker that dies is replaced, given the last broadcasts again, and its item is done by another.

        Raises:
            WorkerLostError: the same item killed `MAX_DEATHS` workers.
            Exception: whatever the method itself raised.
        """
        results: list[Any] = [None] * len(items)
        deaths = [0] * len(items)
        waiting = deque(range(len(items)))
        idle = deque(range(len(self._workers)))
        # Worker, item and the time to be done by, in the order in which they were begun.
        running: dict[ray.ObjectRef, tuple[int, int, float]] = {}
        while waiting or running:
            while waiting and idle:
                index, item = idle.popleft(), waiting.popleft()
                call = self._call(index, method, *items[item])
                running[call] = index, item, time.monotonic() + self._stuck_after
            oldest, (stuck, _, deadline) = next(iter(running.items()))
            busy = f"{len(running)} of {len(self)} busy"
            doing = f"{self.name} to {method}: {busy}, 0 restarting, {len(waiting)} items not started"
            ref = wait_any(list(running), doing, deadline)
            if ref is None:
                self._kill_stuck(stuck, method)
                ref = oldest
            index, item, _ = running.pop(ref)
            try:
                results[item] = ray.get(ref)
            except RayActorError as error:
                deaths[item] += 1
                if deaths[item] == MAX_DEATHS:
                    raise WorkerLostError(
                        f"{MAX_DEATHS} {self.name} died on the same item of {method}, last {self._specs[index].label}"
                    ) from error
                self._replace(index, method)
                waiting.appendleft(item)
            idle.append(index)
        return results

    def broadcast(self, method: str, *args: Any) -> None:
        """`worker.method(*args)` on every worker, and on every later replacement before it does anything else.

        Object references among `args` reach the method as the objects they stand for.
        """
        self._state[method] = args
        telling = {self._call(index, method, *args): index for index in range(len(self))}
        deadline = time.monotonic() + self._stuck_after
        while telling:
            doing = f"{self.name} to {method}: {len(telling)} of {len(self)} busy, 0 restarting"
            ref = wait_any(list(telling), doing, deadline)
            if ref is None:
                ref = next(iter(telling))
                self._kill_stuck(telling[ref], method)
            index = telling.pop(ref)
            try:
                ray.get(ref)
            except RayActorError:
                self._replace(index, method)

    def pids(self) -> list[int]:
        """Process ids of the workers, by way of their `pid` method."""
        return ray.get([worker.pid.remote() for worker in self._workers])

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            ray.kill(worker)

    def _kill_stuck(self, index: int, method: str) -> None:
        who = self.name, method, self._stuck_after, self._specs[index].label
        log.warning("one of the %s is stuck: %s took over %g s; killing it, %s", *who)
        ray.kill(self._workers[index])

    def _call(self, index: int, method: str, *args: Any) -> ray.ObjectRef:
        return self._specs[index].call(self._workers[index], method, *args)

    def _replace(self, index: int, method: str) -> None:
        """Starts another worker and brings it to where the others are; it may die on the way like any other."""
        for _ in range(MAX_DEATHS):
            self.restarts += 1
            spec = self._specs[index]
            who = len(self), self.name, method, spec.label
            log.warning("one of %d %s died in %s; starting another and reissuing its work: %s", *who)
            self._workers[index] = spec.spawn()
            ready = self._call(index, "__ray_ready__")
            wait_all([ready], f"{self.name}: 1 of {len(self)} restarting")
            try:
                self._constructed(index, ready)
                for told_method, args in self._state.items():
                    told = self._call(index, told_method, *args)
                    wait_all([told], f"{self.name} to {told_method}: 1 of {len(self)} restarting")
                    ray.get(told)
                return
            except (RayActorError, WorkerLostError) as error:
                lost = error
        raise WorkerLostError(f"{MAX_DEATHS} new {self.name} in a row died while they were started") from lost

    def _constructed(self, index: int, ready: ray.ObjectRef) -> None:
        try:
            ray.get(ready)
        except RayActorError as error:
            label = self._specs[index].label
            raise WorkerLostError(f"a worker of {self.name} could not be started, {label}: {error}") from error
