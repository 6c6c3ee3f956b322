"""Interchangeable workers: any of them can do any item of work, and a dead or stuck one costs only the item it held."""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
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
        self.name, self._spec, self._stuck_after = name, spec, stuck_after
        self.restarts = 0
        self._state: dict[str, tuple[Any, ...]] = {}  # last broadcast of each method, for workers that start later
        self._workers: list[Any] = [spec.spawn(index) for index in range(size)]
        ready: list[ray.ObjectRef] = [worker.__ray_ready__.remote() for worker in self._workers]
        wait_all(ready, f"{size} {name} to start")
        for started in ready:
            self._constructed(started)

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
                call = getattr(self._workers[index], method).remote(*items[item])
                running[call] = index, item, time.monotonic() + self._stuck_after
            oldest, (stuck, _, deadline) = next(iter(running.items()))
            doing = f"{self.name}: {len(running)} busy, {len(waiting)} items not started"
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
                    raise WorkerLostError(f"{MAX_DEATHS} {self.name} died on the same item of {method}") from error
                self._replace(index)
                waiting.appendleft(item)
            idle.append(index)
        return results

    def broadcast(self, method: str, *args: Any) -> None:
        """`worker.method(*args)` on every worker, and on every later replacement before it does anything else.

        Object references among `args` reach the method as the objects they stand for.
        """
        self._state[method] = args
        refs = [getattr(worker, method).remote(*args) for worker in self._workers]
        deadline = time.monotonic() + self._stuck_after
        for index, ref in enumerate(refs):
            if wait_any([ref], f"{self.name} to {method}", deadline) is None:
                self._kill_stuck(index, method)
            try:
                ray.get(ref)
            except RayActorError:
                self._replace(index)

    def pids(self) -> list[int]:
        """Process ids of the workers, by way of their `pid` method."""
        return ray.get([worker.pid.remote() for worker in self._workers])

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            ray.kill(worker)

    def _kill_stuck(self, index: int, method: str) -> None:
        log.warning("one of the %s is stuck: %s took over %g s; killing it", self.name, method, self._stuck_after)
        ray.kill(self._workers[index])

    def _replace(self, index: int) -> None:
        """Starts another worker and brings it to where the others are; it may die on the way like any other."""
        for _ in range(MAX_DEATHS):
            self.restarts += 1
            log.warning("one of %d %s died; starting another and reissuing its work", len(self._workers), self.name)
            worker = self._workers[index] = self._spec.spawn(index)
            ready: ray.ObjectRef = worker.__ray_ready__.remote()
            wait_all([ready], f"one of the {self.name} to restart")
            try:
                self._constructed(ready)
                for method, args in self._state.items():
                    ray.get(getattr(worker, method).remote(*args))
                return
            except (RayActorError, WorkerLostError) as error:
                lost = error
        raise WorkerLostError(f"{MAX_DEATHS} new {self.name} in a row died while they were started") from lost

    def _constructed(self, ready: ray.ObjectRef) -> None:
        try:
            ray.get(ready)
        except RayActorError as error:
            raise WorkerLostError(f"a worker of {self.name} could not be started: {error}") from error
