"""Starting Ray, or joining the cluster this process belongs to."""

import logging
import math
import os
import socket
from threading import Timer
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.utils import read_ray_address

log = logging.getLogger(__name__)

ANSWER = 5.0  # seconds a cluster has to take a connection
PATIENCE = 15.0  # seconds to join one that took it, until a line says what is waited for


def start(num_cpus_needed: float, uses_gpus: bool) -> None:
    """Joins the running cluster (`ray job submit`, RAY_ADDRESS, or `ray start` on this machine), else starts a Ray of
    its own here, which listens on loopback alone.

    Args:
        num_cpus_needed: what all actors of the run reserve together. A Ray started here offers at least that much, so
            that a small laptop can run everything, only slower.
        uses_gpus: whether an actor reserves one, or a part. A Ray started here offers the GPUs there are.

    Raises:
        ConnectionError: nobody answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    told = os.environ.get("RAY_ADDRESS", "")
    # Without "auto", which also finds the Ray that another run started for itself and will take away again.
    address = told or read_ray_address() or "local"
    if address != "local" and not _answers(address):
        if told:
            raise ConnectionError(
                f"no Ray cluster answers at RAY_ADDRESS = {told}: start it, correct the address, or unset RAY_ADDRESS "
                "to run on this machine alone"
            )
        log.warning("no Ray cluster answers at %s, which `ray start` left: starting a Ray of this run's own", address)
        address = "local"
    if address == "local":
        _start_own(num_cpus_needed)
    else:
        _join(address)
    gpus = int(ray.cluster_resources().get("GPU", 0.0))
    if gpus and not uses_gpus:
        log.warning("%d GPUs stand idle: rollout.num_gpus and learner.num_gpus are 0; 0.5 each share one", gpus)


def stop() -> None:
    """Leaves the cluster; ends it if `start` started it."""
    ray.shutdown()


def _start_own(num_cpus_needed: float) -> None:
    # The processes share this machine's cores through their thread counts; Ray's CPU numbers only place them.
    cpus = max(os.cpu_count() or 1, math.ceil(num_cpus_needed))
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    # Without, this machine's address is loopback to Ray, as it is on macOS, and all its servers bind to that alone.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(address="local", num_cpus=cpus, **quiet)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _join(address: str) -> None:
    log.info("joining the Ray cluster at %s", address)
    # It tries for minutes where something listens that is not Ray, or another version of it.
    late = Timer(
        PATIENCE, log.warning, ("waited %g s for the Ray cluster at %s to let this run join", PATIENCE, address)
    )
    late.daemon = True
    late.start()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    finally:
        late.cancel()


def _answers(address: str) -> bool:
    """Whether something listens there; assumed where it is no host:port ("auto", ray://...), which Ray will judge."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except OSError:
        return False
    return True
