"""Where the ranks of a gang meet, and others meet them: on loopback, unless they are on several nodes."""

import socket

import ray
from ray.util import get_node_ip_address
from ray.util.placement_group import placement_group_table

from deltarl.actor.host import Places

LOOPBACK = "127.0.0.1"


def meeting_point(places: Places | None) -> tuple[str, int]:
    """Address and port for rank 0 to listen at; nobody listens beyond loopback where nobody has to.

    Args:
        places: of the ranks. Without them the ranks have to be on this node.
    """
    if places is None or len([node for node in ray.nodes() if node["Alive"]]) == 1:
        return LOOPBACK, _free_port()
    node_of = placement_group_table(places.group)["bundles_to_node_id"]
    several = len({node_of[bundle] for bundle in places.bundles}) > 1
    # Only a process of that node knows its address and what is free there.
    look = ray.remote(num_cpus=0)(_here).options(scheduling_strategy=places.of(0))
    address, port = ray.get(look.remote())
    return (address if several else LOOPBACK), port


def address_of(node: str) -> str:
    """Address of a node, by its Ray id, for others of the cluster: loopback, if there are none."""
    alive = [found for found in ray.nodes() if found["Alive"]]
    address: str = next(found["NodeManagerAddress"] for found in alive if found["NodeID"] == node)
    return LOOPBACK if len(alive) == 1 else address


def _here() -> tuple[str, int]:
    return get_node_ip_address(), _free_port()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        port: int = s.getsockname()[1]
    return port
