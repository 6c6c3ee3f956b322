"""A cluster of two raylets in a process of its own, as a process can be in one Ray only; prints what it saw as JSON."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from deltarl.actor import placement
from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
from deltarl.actor.host import Places, WorkerSpec
from deltarl.actor.placement import Bundle, PlacementError, cluster_nodes, reserved
from deltarl.rl.layout import layout

cloudpickle.register_pickle_by_value(sys.modules[__name__])

HELD = "the other has it"


class Worker:
    def where(self) -> tuple[str, list[int]]:
        context = ray.get_runtime_context()
        return context.get_node_id(), [int(x) for x in context.get_accelerator_ids()["GPU"]]

    def meeting(self) -> tuple[str, str]:
        import os

        return os.environ["MASTER_ADDR"], ray.util.get_node_ip_address()

    def sum(self, x: float) -> float:
        import torch
        from torch import distributed

        distributed.init_process_group("gloo")
        total = torch.tensor(x)
        distributed.all_reduce(total)
        distributed.destroy_process_group()
        return float(total)


def run(config: Any) -> dict[str, Any]:
    """Where ranks and samplers of a configuration came to be."""
    found = layout(config, cluster_nodes())
    with reserved(found.bundles, found.spread) as group:

        def spec(section: Any, role: Any) -> WorkerSpec:
            places = Places(group, found.places[role])
            return WorkerSpec(Worker, num_cpus=section.num_cpus, num_gpus=section.num_gpus, places=places)

        ranks = Gang("ranks", spec(config.learner, "learner"), config.learner.num_ranks)
        samplers = Fleet("samplers", spec(config.rollout, "rollout"), config.rollout.num_workers)
        seen = {
            "ranks": ranks.broadcast("where"),
            "samplers": [ray.get(slot.worker.where.remote()) for slot in samplers._slots],
            "meeting": ranks.broadcast("meeting"),
            "sum": ranks.scatter("sum", [(float(i),) for i in range(config.learner.num_ranks)]),
        }
        samplers.close()
        ranks.close()
    return seen


def wait_for_another_job() -> list[str]:
    """Log lines while a job that fills the cluster is there, and then goes."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(placement.__name__).addHandler(handler)
    placement.FIRST_PATIENCE = 0.3
    placement.PATIENCE = 0.3
    leave = threading.Event()

    def other() -> None:
        with reserved([Bundle("another job", 1.5)] * 2, False):
            lines.append(HELD)
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    while HELD not in lines:
        time.sleep(0.01)
    threading.Timer(1.0, leave.set).start()
    with reserved([Bundle("a worker", 1.0)], False):
        lines.append("placed")
    thread.join()
    return lines[lines.index(HELD) :]


def fail_and_refuse() -> dict[str, Any]:
    """What is left of a run that failed, and the message to one that is too large."""
    try:
        with reserved([Bundle("a worker", 2.0)] * 2, False):
            raise KeyError("the run failed")
    except KeyError:
        left = [group["state"] for group in placement_group_table().values()]
    try:
        with reserved([Bundle("a worker", 0.5, 1.0)] * 5, False):
            return {}
    except PlacementError as error:
        return {"left": left, "refused": str(error)}


@contextmanager
def two_nodes() -> Iterator[None]:
    node = {"num_cpus": 2, "num_gpus": 2}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def main(recipe: str, cases: Sequence[str]) -> None:
    from pathlib import Path

    from deltarl.rl.cli import load_config

    with two_nodes():
        seen: dict[str, Any] = {case: run(load_config(Path(recipe), case.split())) for case in cases}
        seen |= {"waiting": wait_for_another_job(), **fail_and_refuse()}
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
