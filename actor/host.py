"""One plain class in one Ray actor, and waiting for it without leaving the user in the dark."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds without news before a line says what is being waited for


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
    """

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    places: Places | None = None

    def spawn(self, index: int = 0) -> Any:
        """Starts the actor that is worker `index` of its fleet; returns before its constructor has run."""
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
            options["scheduling_strategy"] = self.places.of(index)
        return ray.remote(self.cls).options(**options).remote(*self.args, **self.kwargs)


def wait_any(refs: Sequence[ray.ObjectRef], waiting_for: str, until: float = math.inf) -> ray.ObjectRef | None:
    """The first of `refs` that is ready or failed; logs a line for every `PATIENCE` seconds of waiting.

    Args:
        until: the time on `time.monotonic`'s clock from which on it waits no longer.

    Returns:
        None if none was ready by then.
    """
    start = time.monotonic()
    while True:
        patience = max(0.0, min(PATIENCE, until - time.monotonic()))
        ready, _ = ray.wait(list(refs), num_returns=1, timeout=patience)
        if ready:
            return ready[0]
        if time.monotonic() >= until:
            return None
        log.warning("waited %.0f s for %s", time.monotonic() - start, waiting_for)


def wait_all(refs: Sequence[ray.ObjectRef], waiting_for: str) -> None:
    """Returns when every ref is ready or failed."""
    left = list(refs)
    while left:
        done = wait_any(left, f"{waiting_for} ({len(left)} of {len(refs)} not done)")
        assert done is not None  # it waits for ever
        left.remove(done)
