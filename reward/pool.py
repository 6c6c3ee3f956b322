"""Long-lived worker processes that can be killed: the only way to stop sympy in the middle of an answer.

The pool works from threads, from asyncio (in ``to_thread``), in a Ray actor, from a script without a main guard, and in
a fork of the process that made it, where it starts processes of its own.
"""

import queue
import time
import weakref
from dataclasses import dataclass
from typing import Self

from deltarl.reward import forks
from deltarl.reward.processes import ForkServer, Worker
from deltarl.reward.verdict import DecidedBy, VerdictKind

DEFAULT_MEMORY_BYTES = 512 << 20

STARVATION = 5
"""A verdict must not depend on what else runs on the machine, but nor may a worker that never runs be waited for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How judging one pair ended, and the seconds it took from the moment a worker had it."""

    kind: VerdictKind
    detail: str
    seconds: float
    decided_by: DecidedBy | None = None


class WorkerPool:
    """``num_workers`` processes judging one pair each; one that is killed is replaced within milliseconds.

    Processes start at the first ``judge``. Thread-safe. Use as a context manager, or call ``close``; they also end
    with the pool's object and with its process, however that ends.

    Args:
        timeout: processor seconds one pair may take, from the moment a worker takes it. On a machine where the worker
            does not get its turn, that may be up to ``STARVATION`` times as long by the clock on the wall.
        num_workers: processes. They share most of the 60 MB that sympy takes with the process they are forked from.
        memory_bytes: address space of a worker.
    """

    def __init__(self, timeout: float, num_workers: int = 1, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; it must be more than 0 seconds")
        self.timeout = timeout
        self.num_workers = num_workers
        self._server = ForkServer(memory_bytes)
        self._slots = _empty_slots(num_workers)
        forks.register(self)
        weakref.finalize(self, self._server.close)

    def judge(self, pred: str, gold: str) -> Outcome:
        """Judge answer ``pred`` against ``gold`` in a worker. Waiting for a free worker does not count as time.

        Raises:
            WorkerStartError: no worker process can be started.
            RuntimeError: the pool is closed.
        """
        slots = self._slots
        worker = slots.get()
        try:
            if worker is not None and not worker.is_alive():
                self._server.kill(worker)
                worker = None
            worker = worker or self._server.fork()
            outcome, is_usable = self._ask(worker, pred, gold)
            if not is_usable:
                self._server.kill(worker)
                worker = None
            return outcome
        except BaseException:
            if worker is not None:
                # Interrupted with a reply outstanding, which the next item would read.
                self._server.kill(worker)
                worker = None
            raise
        finally:
            slots.put(worker)

    def pids(self) -> list[int]:
        """Process ids: of the server that workers are forked from, then of the workers there are."""
        return self._server.pids()

    def close(self) -> None:
        """End all processes; items being judged end as errors. Idempotent."""
        self._server.close()
        # Their users see the end of the socket and hand the slots back.
        for worker in [self._slots.get() for _ in range(self.num_workers)]:
            if worker is not None:
                self._server.kill(worker)
            self._slots.put(None)

    def after_fork(self) -> None:
        """See ``forks``: the processes stay the parent's, and the fork starts some of its own."""
        self._server.forget()
        self._slots = _empty_slots(self.num_workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, worker: Worker, pred: str, gold: str) -> tuple[Outcome, bool]:
        """What came of one pair, and whether the worker can take another."""
        started = time.monotonic()
        is_usable, decided_by = False, None
        try:
            request = {"pred": pred, "gold": gold, "timeout": self.timeout}
            reply = worker.ask(request, STARVATION * self.timeout)
            kind, detail, is_usable = VerdictKind(reply["kind"]), str(reply["detail"]), not reply["last"]
            decided_by = DecidedBy(reply["decided_by"]) if "decided_by" in reply else None
        except (EOFError, OSError):
            # A worker whose time is up dies, and no earlier than this.
            if time.monotonic() - started >= self.timeout:
                kind, detail = VerdictKind.TIMEOUT, f"not decided within {self.timeout} s"
            else:
                kind, detail = VerdictKind.ERROR, "the worker process died"
        return Outcome(kind, detail, time.monotonic() - started, decided_by), is_usable


def _empty_slots(num_workers: int) -> "queue.LifoQueue[Worker | None]":
    slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()
    for _ in range(num_workers):
        slots.put(None)
    return slots
