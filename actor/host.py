"""One plain class in one Ray actor, and waiting for it without leaving the user in the dark."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deltarl.actor.calls import Watch, begun, ended, no_room
from deltarl.actor.output import with_output_in

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds without news before a line says what is being waited for
BESIDE = "beside"  # Ray's name for the thread of `WorkerSpec.beside`

DIED = (RayActorError, OutOfMemoryError)
"""What Ray raises for a worker whose process ended: by itself, with its node, or by Ray's own memory monitor."""


class WorkerLostError(RuntimeError):
    """Workers cannot be started, or keep dying on the same work."""


class StateLostError(WorkerLostError):
    """What died held what nobody else has: the run can go on from its last checkpoint alone."""


@dataclass(frozen=True)
class Places:
    """Bundles of a placement group, one for each worker of a fleet or rank of a gang; several may have the same."""

    group: PlacementGroup
    bundles: Sequence[int]

    def of(self, index: int) -> PlacementGroupSchedulingStrategy | None:
        """For Ray, where worker `index` goes; None for one that joined later and has no place reserved."""
        if index >= len(self.bundles):
            return None
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundles[index])


@dataclass(frozen=True)
class WorkerSpec:
    """How to build one worker.

    Attributes:
        cls, args, kwargs: the plain class to host and what to construct it with.
        num_cpus, num_gpus: what Ray reserves for it; a fraction of a GPU shares it with others, 0 hides all GPUs.
        num_threads: threads its numeric libraries may use. Two processes that both use every core slow each other
            down many times over.
        env: further environment variables of the process.
        places: where the workers go; without, wherever Ray finds room.
        fleet, index: which worker it is, for whoever watches and for its log file.
        beside: methods that the worker does, one after the other, in a thread beside that of all others, and so also
            while one of these is under way. Then none runs on the main thread of the process.
        logs: folder of log files; without it, output stays where Ray has it.
        watch: is told of the worker's calls.
    """

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    places: Places | None = None
    fleet: str = "worker"
    index: int = 0
    beside: Sequence[str] = ()
    logs: Path | None = None
    watch: Watch | None = field(default=None, compare=False)

    @property
    def log_file(self) -> Path | None:
        """Where the process writes what it says; one that follows it there appends."""
        return self.logs / f"{self.fleet}-{self.index}.log" if self.logs else None

    @property
    def label(self) -> str:
        """The worker's name, and where its output is."""
        where = f" (its output: {self.log_file})" if self.log_file else ""
        return f"{self.fleet}-{self.index}{where}"

    def call(self, worker: Any, method: str, *args: Any) -> ray.ObjectRef:
        """Starts `worker.method(*args)` of an actor that this spec has spawned. Its constructor counts as `start`."""
        ref = self.submit(worker, method, *args)
        self._begun(ref, "start" if method in ("__ray_ready__", "__ray_call__") else method)
        return ref

    def call_apart(self, worker: Any, method: str, *args: Any) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        """As `call`, with the end of the call and what it returned as two objects: whoever gets the first one waits,
        and learns of an error, without having the second brought to its node."""
        calling = worker.__ray_call__.options(num_returns=2)
        done, result = calling.remote(_apart, method, *args)
        self._begun(done, method)
        return done, result

    def _begun(self, ref: ray.ObjectRef, phase: str) -> None:
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        begun(ref, self.watch, self.fleet, self.index, phase, asked)

    def submit(self, worker: Any, method: str, *args: Any) -> ray.ObjectRef:
        """As `call`, of which nobody is told."""
        asked = getattr(worker, method)
        if method in self.beside:
            asked = asked.options(concurrency_group=BESIDE)
        ref: ray.ObjectRef = asked.remote(*args)
        return ref

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
        if self.places is not None:
            options["scheduling_strategy"] = self.places.of(self.index)
        cls = with_output_in(self.log_file, self.cls) if self.log_file else self.cls
        if self.beside:
            hosted = ray.remote(concurrency_groups={BESIDE: 1})(cls)  # type: ignore[call-overload]  # Ray has it untyped
        else:
            hosted = ray.remote(cls)
        return hosted.options(**options).remote(*self.args, **self.kwargs)


def _apart(hosted: Any, method: str, *args: Any) -> tuple[None, Any]:
    return None, getattr(hosted, method)(*args)


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
            ended(ready[0])
            return ready[0]
        now = time.monotonic()
        if now >= until:
            return None
        if now >= tell:
            log.warning("waited %.0f s for %s%s", now - start, waiting_for, no_room(refs))
            tell = now + PATIENCE
        if meanwhile is not None and now >= look:
            meanwhile()
            look = time.monotonic() + every
