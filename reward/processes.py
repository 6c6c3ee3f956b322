"""The pool's side of its processes: a fork server, started when first needed, and the workers forked from it."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import deltarl
from deltarl.reward import messages

_START_SECONDS = 60.0
_START_ATTEMPTS = 3
_END_SECONDS = 10.0


class WorkerStartError(RuntimeError):
    """A worker process cannot be started here: an installation problem, not an answer's fault."""


class Worker:
    """One worker process at the other end of a socket. Not thread-safe."""

    def __init__(self, connection: socket.socket) -> None:
        self.pid: int | None = None
        self.control: socket.socket | None = None
        """The commands of the server it is a child of."""
        self._connection = connection

    def wait_ready(self) -> None:
        """Wait for its first word. Raises EOFError or OSError (TimeoutError among them) if it does not come."""
        self.pid = int(self._receive(time.monotonic() + _START_SECONDS)["pid"])

    def is_alive(self) -> bool:
        """Whether its end of the socket is open; asked between items, when there is nothing to be read."""
        self._connection.setblocking(False)
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send ``request`` and return the reply. Raises TimeoutError; EOFError or OSError if the process died."""
        deadline = time.monotonic() + timeout
        self._connection.settimeout(timeout)
        self._connection.sendall(messages.encode(request))
        return self._receive(deadline)

    def hang_up(self) -> None:
        """Close this end of the socket, which ends the process once it is idle. Idempotent."""
        self._connection.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        (size,) = messages.HEADER.unpack(self._read(messages.HEADER.size, deadline))
        return messages.decode(self._read(size, deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self._connection.settimeout(remaining)
            chunk = self._connection.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data


class ForkServer:
    """Forks workers and kills them. Starts at the first ``fork``, and again if its process has died. Thread-safe."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._closed = False
        self._workers: set[Worker] = set()
        self._forget()

    def fork(self) -> Worker:
        """A worker that is ready.

        Raises:
            WorkerStartError: none can be started.
            RuntimeError: the server is closed.
        """
        for _ in range(_START_ATTEMPTS):
            ours, theirs = socket.socketpair()
            worker = Worker(ours)
            try:
                with theirs, self._lock:
                    self._workers.add(worker)
                    worker.control = self._running()
                    messages.send_fork(worker.control, theirs)
                worker.wait_ready()
                return worker
            except (EOFError, OSError):
                self.kill(worker)
            except BaseException:
                self.kill(worker)
                raise
        raise WorkerStartError(
            f"'{sys.executable} -m deltarl.reward.forkserver' does not start workers; its message is on standard "
            f"error. Is sympy installed there, and are {self._memory_bytes >> 20} MiB of address space enough?"
        )

    def kill(self, worker: Worker) -> None:
        """End ``worker`` whatever it does, and close its socket. Idempotent."""
        with self._lock:
            if worker in self._workers and worker.pid is not None and worker.control is not None:
                # If that server died, an idle worker sees its socket close and a busy one ends when its time is up.
                with contextlib.suppress(OSError):
                    messages.send_kill(worker.control, worker.pid)
            self._workers.discard(worker)
        worker.hang_up()

    def pids(self) -> list[int]:
        """Process ids of the server and then of its workers; empty before the first ``fork``."""
        with self._lock:
            workers = [worker.pid for worker in self._workers if worker.pid is not None]
            return workers if self._process is None else [self._process.pid, *workers]

    def close(self) -> None:
        """End the server and all workers. Idempotent."""
        with self._lock:
            self._closed = True
            self._stop()

    def forget(self) -> None:
        """In a fork of this process: let go of the processes, which stay its parent's."""
        for worker in self._workers:
            worker.hang_up()
        self._workers.clear()
        if self._control is not None:
            self._control.close()
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()  # the one of before may be held by a thread that was not forked
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def _running(self) -> socket.socket:
        """The control socket of a server that lives."""
        if self._closed:
            raise RuntimeError("the worker pool is closed")
        if self._process is None or self._control is None or self._process.poll() is not None:
            self._stop()
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = _start(theirs, self._memory_bytes)
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()  # the server ends its workers, then itself
        if self._process is not None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _start(control: socket.socket, memory_bytes: int) -> "subprocess.Popen[bytes]":
    root = str(Path(deltarl.__file__).absolute().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        # Without GMP: with it a huge factorial aborts the process, or runs on where no signal reaches it.
        "SYMPY_GROUND_TYPES": "python",
        "MPMATH_NOGMPY": "1",
        # The order of sympy's sets, and so what it makes of an expression, is the same in every run.
        "PYTHONHASHSEED": "0",
    }
    # A fresh interpreter, neither forked nor importing the caller's __main__. -P: nor a sympy.py of the working folder.
    command = [sys.executable, "-P", "-m", "deltarl.reward.forkserver", str(memory_bytes)]
    return subprocess.Popen(command, stdin=control.fileno(), stdout=subprocess.DEVNULL, env=environment)
