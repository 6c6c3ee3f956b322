"""A server process at the other end of a pipe: started, called, watched."""

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np

import deltarl
from deltarl.model.weights import WeightMismatchError
from deltarl.rollout.vllm import protocol

# What a call may raise here as it did there.
ERRORS = (WeightMismatchError, ImportError, ValueError)

_LOG_TAIL = 2000  # characters of the process's log in an error


class VLLMError(RuntimeError):
    """vLLM is not there, did not start, or has died."""


class ServerProcess:
    """Runs `command FILE_DESCRIPTOR` and calls it with `protocol`. It ends when this object or this process does."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]):
        self._folder = tempfile.TemporaryDirectory(prefix="deltarl-vllm-")
        folder = Path(self._folder.name)
        # Only this package is to be seen over there: an installed one lies among the caller's other packages.
        (folder / "deltarl").symlink_to(Path(deltarl.__path__[0]).resolve())
        self._log = folder / "log"
        self._pipe, theirs = Pipe()
        path = os.pathsep.join(filter(None, [str(folder), env.get("PYTHONPATH", "")]))
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    env={**env, "PYTHONPATH": path},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the trainer, which then hangs up
                )
        except OSError as error:
            raise VLLMError(f"cannot run {command[0]}: {error}") from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        *,
        timeout: float,
    ) -> Any:
        """What the call returns over there, after at most `timeout` seconds.

        Raises:
            VLLMError: the process has died, failed, or was killed because it did not answer in time.
            ValueError, WeightMismatchError, ...: what the call raised there, see `ERRORS`.
        """
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._kill()

        # A process that hangs can leave us sending, waiting or halfway through its answer: its death ends all of them.
        timer = threading.Timer(timeout, kill)
        timer.daemon = True
        timer.start()
        try:
            protocol.call(self._pipe, name, arguments, arrays)
            while not self._pipe.poll(1.0):
                if not self.alive:
                    raise EOFError
            return protocol.result(self._pipe, ERRORS)
        except (EOFError, OSError) as error:  # hung up, by either side
            if late.is_set():
                self._process.wait()  # it has been killed: not alive for whoever asks
                raise VLLMError(
                    f"vLLM's process {self.pid} gave no answer to {name!r} in {timeout:g} s and was killed."
                    f"{self.log_tail()}"
                ) from error
            raise VLLMError(
                f"vLLM's process {self.pid} died during {name!r} ({self._exit()}).{self.log_tail()}"
            ) from error
        except protocol.RemoteError as error:
            raise VLLMError(f"vLLM failed during {name!r}: {error}.{self.log_tail()}") from error
        except KeyboardInterrupt:
            self.close(grace=0.0)  # its answer, still to come, would be taken for that of the next call
            raise
        finally:
            timer.cancel()

    def log_tail(self) -> str:
        text = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
        return f" Its last words:\n{text[-_LOG_TAIL:]}" if text else ""

    def close(self, grace: float = 10.0) -> None:
        """Hangs up, and ends the process if it has not ended itself after `grace` seconds."""
        self._pipe.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._folder.cleanup()

    def _kill(self) -> None:
        """With whatever it has started: it leads a group of its own."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)

    def _exit(self) -> str:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "it hung up but still runs"
        return f"signal {-code}" if code < 0 else f"exit code {code}"
