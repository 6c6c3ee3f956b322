"""One plain class in one Ray actor, and waiting for it without leaving the user in the dark."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds without news before a line says what is being waited for


class WorkerLostError(RuntimeError):
    """Workers cannot be started, or keep dying on the same work."""


class StateLostError(WorkerLostError):
    """What died held what nobody else has: the run can go on from its last checkpoint alone."""


@dataclass(frozen=True)
class WorkerSpec:
    """How to build one worker.

    Attributes:
        cls, args, kwargs: the plain class to host and what to construct it with.
        num_cpus, num_gpus: what Ray reserves for it; a fraction of a GPU shares it with others, 0 hides all GPUs.
        num_threads: threads its numeric libraries may use. Two processes that both use every core slow each other
            down many times over.
        env: further environment variables of the process.
    """

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    env: Mapping[str, str] = field(default_factory=dict)

    def spawn(self) -> Any:
        """Starts the actor; returns before its constructor has run."""
        env = {
            "OMP_NUM_THREADS": str(self.num_threads),
            "MKL_NUM_THREADS": str(self.num_threads),
            "TOKENIZERS_PARALLELISM": "false",
            **({} if self.num_gpus else {"CUDA_VISIBLE_DEVICES": ""}),
            **self.env,
        }
        # Ray's own restarts would bring a worker back in its initial state; the fleet restarts it and replays instead.
        reserved = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        options = {**reserved, "max_restarts": 0, "runtime_env": {"env_vars": env}}
        return ray.remote(self.cls).options(**options).remote(*self.args, **self.kwargs)


def wait_any(
    refs: Sequence[ray.ObjectRef],
    waiting_for: str,
    until: float = math.inf,
    meanwhile: Callable[[], None] | None = None,
    every: float = math.inf,
) -> ray.ObjectRef | None:
    """The first of `refs` that is ready or failed; logs a line for every `PATIENCE` seconds of waiting.

    Args:
        until: the time on `time.monotonic`'s clock from which on it waits no longer.
        meanwhile: called each time `every` seconds were waited.

    Returns:
        None if none was ready by then.
    """
    start = time.monotonic()
    tell, look = start + PATIENCE, start + every
    while True:
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=max(0.0, min(tell, look, until) - time.monotonic()))
        if ready:
            return ready[0]
        now = time.monotonic()
        if now >= until:
            return None
        if now >= tell:
            log.warning("waited %.0f s for %s", now - start, waiting_for)
            tell = now + PATIENCE
        if meanwhile is not None and now >= look:
            meanwhile()
            look = time.monotonic() + every
