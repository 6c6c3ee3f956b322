"""Which process this is among those that train together."""

import torch
from accelerate import PartialState
from accelerate.utils import InitProcessGroupKwargs

from deltarl.rl.config import Sharding


def on_cpu() -> bool:
    """Accelerate joins processes over gloo only where it is told that there is no accelerator."""
    return not torch.cuda.is_available()


def communication(sharding: Sharding) -> list[InitProcessGroupKwargs]:
    """For Accelerate, how ranks talk where its own choice will not do: shards in the host's memory need gloo too."""
    both = sharding == "fsdp_offload" and not on_cpu()
    return [InitProcessGroupKwargs(backend="cpu:gloo,cuda:nccl")] if both else []


def rank_state() -> PartialState:
    """Accelerate's view of the ranks; joins them the first time it is called."""
    return PartialState(cpu=on_cpu())
