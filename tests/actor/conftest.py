"""One small Ray for all tests of this folder: starting it takes longer than most of them."""

import os
from collections.abc import Callable, Iterator

import pytest
import ray

from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
from deltarl.actor.host import WorkerSpec


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Address of a Ray that lives as long as the session, of two CPUs and, so it is told, two GPUs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Workers have a niceness of 15 by themselves, with which tests in other processes would starve them.
    niceness = {"worker_niceness": 0}
    options = {"include_dashboard": False, "log_to_driver": False, "_system_config": niceness}
    context = ray.init(address="local", num_cpus=2, num_gpus=2, **options)
    yield context.address_info["gcs_address"]
    ray.shutdown()


def _spec(cls: type, *args: object, num_gpus: float = 0.0) -> WorkerSpec:
    return WorkerSpec(cls, args, num_cpus=0.05, num_gpus=num_gpus)


@pytest.fixture
def make_fleet(ray_address: str) -> Iterator[Callable[..., Fleet]]:
    """`make_fleet(cls, size, *args, **options of the fleet)`: a fleet that ends with the test."""
    fleets: list[Fleet] = []

    def make(cls: type, size: int = 2, *args: object, **options: float) -> Fleet:
        fleets.append(Fleet("test workers", _spec(cls, *args), size, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def make_gang(ray_address: str) -> Iterator[Callable[..., Gang]]:
    """`make_gang(cls, size, *args, num_gpus=0, **options of the gang)`: a gang that ends with the test."""
    gangs: list[Gang] = []

    def make(cls: type, size: int = 2, *args: object, num_gpus: float = 0.0, **options: float) -> Gang:
        gangs.append(Gang("test ranks", _spec(cls, *args, num_gpus=num_gpus), size, **options))
        return gangs[-1]

    yield make
    for gang in gangs:
        gang.close()
