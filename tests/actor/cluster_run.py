"""One run on three raylets, of which one is taken away in the middle of a step and another joins later.

A script, as a process can be in one Ray only: `cluster_run.py key=value ...`. Prints how many samplers there were at
the beginning of each step.
"""

import json
import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from deltarl.rl.cli import load_config
from deltarl.rl.collect import Collector
from deltarl.rl.fleets import Fleets
from deltarl.rl.train import train

TINY = Path(__file__).parents[1] / "rl" / "tiny.yaml"
LEAVES, JOINS = 3, 5  # steps


def main() -> None:
    quick = {"worker_niceness": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    leaving, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    samplers: dict[int, int] = {}
    start, collect, fleets = Fleets.start, Collector.collect, []

    def start_and_look(*arguments):
        fleets.append(start(*arguments))
        nodes = {slot.where.node for slot in fleets[-1].rollout._slots}
        assert leaving.node_id in nodes, "no sampler is where it would be lost"
        return fleets[-1]

    def collect_and_change(self, step):
        samplers[step] = sum(slot.where is not None for slot in fleets[-1].rollout._slots)
        if step == LEAVES:
            threading.Timer(0.02, cluster.remove_node, (leaving, False)).start()
        if step == JOINS:
            cluster.add_node(num_cpus=1)
            fleets[-1].rollout.pids()  # waits until all are there again
        return collect(self, step)

    Fleets.start, Collector.collect = start_and_look, collect_and_change
    train(load_config(TINY, sys.argv[1:]))
    print(json.dumps(samplers))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
