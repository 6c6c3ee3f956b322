"""Starting Ray, or joining the cluster this process belongs to."""

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import ray

log = logging.getLogger(__name__)


def start(num_cpus_needed: float, gpu_shares: Sequence[float]) -> None:
    """Joins the running cluster (`ray job submit`, RAY_ADDRESS, or `ray start` on this machine), else starts a Ray of
    its own here.

    Args:
        num_cpus_needed: what all actors of the run reserve together. A Ray started here offers at least that much, so
            that a small laptop can run everything, only slower.
        gpu_shares: what each actor that uses a GPU reserves of one, at most 1. A Ray started here offers the GPUs there
            are.

    Raises:
        RuntimeError: the cluster that was joined can never place the actors.
        ConnectionError: nobody answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    # The processes share this machine's cores through their thread counts; Ray's CPU numbers only place them.
    cpus = max(os.cpu_count() or 1, math.ceil(num_cpus_needed))
    own: dict[str, Any] = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    try:
        # Not address="auto", which also finds the Ray that another run started for itself and will take away again.
        ray.init(**own)
    except ValueError:  # there is a cluster, whose CPUs are not for us to set
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise
            ray.init(address="local", **own)  # `ray start` was here once, and left its address behind
    offered = ray.cluster_resources().get("CPU", 0.0)
    if offered < num_cpus_needed:
        raise RuntimeError(
            f"the run reserves {num_cpus_needed:g} CPUs and the Ray cluster has {offered:g}: lower rollout.num_workers "
            "or the num_cpus of rollout, reward and learner, or start Ray with more"
        )
    gpus = int(ray.cluster_resources().get("GPU", 0.0))
    if (needed := _gpus_for(gpu_shares)) > gpus:
        raise RuntimeError(
            f"the run's actors fill {needed} GPUs and there are {gpus}: lower rollout.num_gpus and learner.num_gpus, "
            "which may be fractions and are 0 where all is computed on CPUs"
        )
    if gpus and not gpu_shares:
        log.warning("%d GPUs stand idle: rollout.num_gpus and learner.num_gpus are 0; 0.5 each share one", gpus)


def _gpus_for(shares: Sequence[float]) -> int:
    """How many GPUs hold these shares, none of which can be cut in two: the largest first, each where there is room."""
    left: list[float] = []
    for share in sorted(shares, reverse=True):
        room = next((i for i, x in enumerate(left) if share <= x + 1e-6), None)
        if room is None:
            left.append(1.0 - share)
        else:
            left[room] -= share
    return len(left)


def stop() -> None:
    """Leaves the cluster; ends it if `start` started it."""
    ray.shutdown()
