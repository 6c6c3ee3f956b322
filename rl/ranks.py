"""Which process this is among those that train together, and how they meet."""

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed

from deltarl.rl.config import Sharding

MEET = "deltarl-env://"


def on_cpu() -> bool:
    """Accelerate joins processes over gloo only where it is told that there is no accelerator."""
    return not torch.cuda.is_available()


def communication(sharding: Sharding) -> list[InitProcessGroupKwargs]:
    """For Accelerate, how ranks meet, and how they talk where its own choice will not do: shards in the host's memory
    need gloo too."""
    both = sharding == "fsdp_offload" and not on_cpu()
    backend = None if on_cpu() else "cpu:gloo,cuda:nccl" if both else "nccl"
    return [InitProcessGroupKwargs(init_method=MEET, backend=backend)]


def rank_state() -> PartialState:
    """Accelerate's view of the ranks; joins them the first time it is called."""
    return PartialState(cpu=on_cpu(), init_method=MEET)


def _meet(url: str, timeout: timedelta = timedelta(minutes=30), **unused: Any) -> Iterator[tuple[Any, int, int]]:
    """As torch's env://, but rank 0 listens at MASTER_ADDR alone, where torch's listens on every interface."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listen = socket.create_server((address, port)).detach() if rank == 0 else None
    yield distributed.TCPStore(address, port, size, rank == 0, timeout, master_listen_fd=listen), rank, size


distributed.register_rendezvous_handler(MEET.partition(":")[0], _meet)
