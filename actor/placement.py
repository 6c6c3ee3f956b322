"""Where the actors of a run go: bundles of CPUs and GPUs that Ray reserves all together or not at all.

A run that got only a part of what it needs would hold it idle, and two such runs could wait for each other for ever.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from deltarl.actor.host import PATIENCE

log = logging.getLogger(__name__)

FIRST_PATIENCE = 3.0  # seconds until the first line about waiting: a place is either free at once or held by others
EPSILON = 1e-6


@dataclass(frozen=True)
class Bundle:
    """CPUs and GPUs of one node for some actors.

    Attributes:
        holds: these actors, in words.
        gpus: below 1 a share of one GPU, which the actors share; else whole GPUs.
    """

    holds: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Node:
    """A node of the cluster, with what it has in all."""

    name: str
    cpus: float
    gpus: int


class PlacementError(RuntimeError):
    """The cluster can never hold what was asked for, not even empty."""


def cluster_nodes() -> list[Node]:
    """The nodes there are now."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = Counter(node["NodeManagerAddress"] for node in alive)
    return [
        Node(
            node["NodeManagerAddress"] + (f"#{node['NodeID'][:6]}" if names[node["NodeManagerAddress"]] > 1 else ""),
            node["Resources"].get("CPU", 0.0),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in alive
    ]


def fits(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    """Whether empty nodes hold all bundles: the largest first, each on the first node with room."""
    cpus = [node.cpus for node in nodes]
    gpus = [[1.0] * node.gpus for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (b.gpus, b.cpus), reverse=True):
        for i in range(len(nodes)):
            left = _take(gpus[i], bundle.gpus)
            if left is not None and bundle.cpus <= cpus[i] + EPSILON:
                cpus[i] -= bundle.cpus
                gpus[i] = left
                break
        else:
            return False
    return True


@contextmanager
def reserved(bundles: Sequence[Bundle], spread: bool) -> Iterator[PlacementGroup]:
    """Holds the bundles, and gives them back on leaving, whatever happened; Ray does it if this process dies.

    Waits while other jobs hold what is needed, and says so.

    Args:
        spread: on as many nodes as possible, rather than on as few as possible.

    Raises:
        PlacementError: the cluster is too small.
    """
    nodes = cluster_nodes()
    if not fits(bundles, nodes):
        has = "; ".join(f"node {n.name} ({_amount(n.cpus, n.gpus)})" for n in nodes)
        raise PlacementError(
            f"the run cannot be placed on this Ray cluster. Asked: {described(bundles)}. The cluster has: {has}. Lower "
            "num_workers, num_ranks, num_cpus or num_gpus (which may be fractions, and are 0 where all is computed on "
            "CPUs) of rollout, reward and learner, or start Ray with more"
        )
    amounts = [{"CPU": b.cpus, "GPU": b.gpus} if b.gpus else {"CPU": b.cpus} for b in bundles]
    group = placement_group(amounts, strategy="SPREAD" if spread else "PACK")
    try:
        start, patience = time.monotonic(), FIRST_PATIENCE
        while not group.wait(patience):
            patience = PATIENCE
            log.warning(
                "waited %.0f s for a place on the cluster, which other jobs hold. Asked: %s. Free: %s of %s",
                *(time.monotonic() - start, described(bundles)),
                *(_total(ray.available_resources()), _total(ray.cluster_resources())),
            )
        yield group
    finally:
        remove_placement_group(group)


def described(bundles: Sequence[Bundle]) -> str:
    """The bundles in words, like ones counted."""
    counts = Counter(bundles)
    return "; ".join(f"{n} x {b.holds} ({_amount(b.cpus, b.gpus)})" for b, n in counts.items())


def _take(free: list[float], gpus: float) -> list[float] | None:
    """What is free of each GPU of a node once `gpus` are taken; None if they are not there. A share is never cut in
    two, and goes where least is left after it."""
    if gpus <= EPSILON:
        return free
    if gpus > 1.0 + EPSILON:
        whole = [i for i, x in enumerate(free) if x >= 1.0 - EPSILON][: round(gpus)]
        return [0.0 if i in whole else x for i, x in enumerate(free)] if len(whole) == round(gpus) else None
    room = [i for i, x in enumerate(free) if gpus <= x + EPSILON]
    if not room:
        return None
    best = min(room, key=lambda i: free[i])
    return [x - gpus if i == best else x for i, x in enumerate(free)]


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs, {gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"


def _total(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0.0):g} CPUs, {resources.get('GPU', 0.0):g} GPUs"
