"""Long-lived worker processes that can be killed: the only way to stop sympy in the middle of an answer.

Workers are fresh interpreters, neither forked nor importing the caller's ``__main__``, so the pool can be used from
threads, from asyncio (in ``to_thread``), in a Ray actor or from a script without a main guard.
"""

import os
import queue
import selectors
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import deltarl
from deltarl.reward import messages
from deltarl.reward.verdict import DecidedBy, VerdictKind

_START_SECONDS = 60.0
_START_ATTEMPTS = 3
DEFAULT_MEMORY_BYTES = 2 << 30


class WorkerStartError(RuntimeError):
    """A worker process cannot be started here: an installation problem, not an answer's fault."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How judging one pair ended, and the seconds it took from the moment a worker had it."""

    kind: VerdictKind
    detail: str
    seconds: float
    decided_by: DecidedBy | None = None


class WorkerPool:
    """``num_workers`` processes judging one pair each, plus a warm spare that replaces one that is killed.

    Processes start at the first ``judge``. Thread-safe. Use as a context manager, or call ``close``.

    Args:
        timeout: wall-clock seconds one pair may take, counted from the moment a worker takes it.
        num_workers: processes, about 100 MB each; one more is kept as the spare.
        memory_bytes: address space of a worker.
    """

    def __init__(self, timeout: float, num_workers: int = 1, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; it must be more than 0 seconds")
        self.timeout = timeout
        self.num_workers = num_workers
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._closed = False
        self._spare: _Worker | None = None
        self._running: set[_Worker] = set()
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._slots.put(None)
        weakref.finalize(self, _kill_all, self._running)

    def judge(self, pred: str, gold: str) -> Outcome:
        """Judge answer ``pred`` against ``gold`` in a worker. Waiting for a free worker does not count as time.

        Raises:
            WorkerStartError: no worker process can be started.
            RuntimeError: the pool is closed.
        """
        worker = self._slots.get()
        try:
            worker = self._ready(worker)
            started = time.monotonic()
            decided_by = None
            try:
                reply = worker.ask({"pred": pred, "gold": gold, "timeout": self.timeout}, self.timeout)
                kind, detail = VerdictKind(reply["kind"]), str(reply["detail"])
                decided_by = DecidedBy(reply["decided_by"]) if "decided_by" in reply else None
            except TimeoutError:
                self._dispose(worker)
                kind, detail = VerdictKind.TIMEOUT, f"not decided within {self.timeout} s"
            except (EOFError, OSError):
                self._dispose(worker)
                kind, detail = VerdictKind.ERROR, "the worker process died"
            return Outcome(kind, detail, time.monotonic() - started, decided_by)
        except BaseException:
            # Interrupted with a reply outstanding, which the next item would read.
            self._dispose(worker)
            raise
        finally:
            self._slots.put(worker)  # a dead one too: ``_ready`` replaces it

    def pids(self) -> list[int]:
        """Process ids of the workers, the spare included."""
        with self._lock:
            return [worker.process.pid for worker in self._running]

    def close(self) -> None:
        """Kill all workers; items being judged end as errors. Idempotent."""
        with self._lock:
            self._closed = True
            _kill_all(self._running)
            spare, self._spare = self._spare, None
        self._dispose(spare)
        # Their users see the end of the pipe and hand the slots back; only then may the pipes be closed.
        slots = [self._slots.get() for _ in range(self.num_workers)]
        for worker in slots:
            self._dispose(worker)
            self._slots.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ready(self, worker: "_Worker | None") -> "_Worker":
        """``worker`` if it lives, else a new one that has said it is ready."""
        for _ in range(_START_ATTEMPTS):
            if worker is None or worker.process.poll() is not None:
                self._dispose(worker)
                worker = self._take_spare()
            try:
                worker.wait_ready(_START_SECONDS)
            except (EOFError, OSError):  # OSError includes TimeoutError
                self._dispose(worker)
            # A spare may have been ready long ago and killed since, by the system short of memory for one.
            if worker.process.poll() is None:
                return worker
        raise WorkerStartError(
            f"'{sys.executable} -m deltarl.reward.worker' did not start; its message is on standard error. "
            f"Is sympy installed there, and are {self._memory_bytes >> 20} MiB of address space enough?"
        )

    def _take_spare(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise RuntimeError("the worker pool is closed")
            worker = self._spare or _Worker(self._memory_bytes)
            self._spare = _Worker(self._memory_bytes)
            self._running.update((worker, self._spare))
            return worker

    def _dispose(self, worker: "_Worker | None") -> None:
        if worker is not None:
            worker.dispose()
            with self._lock:
                self._running.discard(worker)


def _kill_all(workers: "set[_Worker]") -> None:
    for worker in workers:
        worker.process.kill()


class _Worker:
    """One worker process and its pipes. Not thread-safe: its user holds its slot."""

    def __init__(self, memory_bytes: int) -> None:
        root = str(Path(deltarl.__file__).absolute().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # Without GMP: with it a huge factorial aborts the process, or runs on where no signal reaches it.
        environment = {**os.environ, "PYTHONPATH": path, "SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1"}
        self.process = subprocess.Popen(
            # -P: a file called sympy.py in the working directory is not imported.
            [sys.executable, "-P", "-m", "deltarl.reward.worker", str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._replies = self.process.stdin, self.process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._replies, selectors.EVENT_READ)
        self._is_ready = False

    def wait_ready(self, timeout: float) -> None:
        if not self._is_ready:
            self._receive(time.monotonic() + timeout)
            self._is_ready = True

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send ``request`` and return the reply. Raises TimeoutError; EOFError or OSError if the process died."""
        deadline = time.monotonic() + timeout
        self._requests.write(messages.encode(request))  # a few kB at most: fits the pipe, so it cannot block
        return self._receive(deadline)

    def dispose(self) -> None:
        """Kill the process, reap it and close the pipes. Idempotent."""
        self.process.kill()
        self.process.wait()
        self._selector.close()
        self._requests.close()
        self._replies.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        (size,) = messages.HEADER.unpack(self._read(messages.HEADER.size, deadline))
        return messages.decode(self._read(size, deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            chunk = os.read(self._replies.fileno(), size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data
