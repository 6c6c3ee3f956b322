"""Weights, gradients and optimizer state cut up among the ranks (FSDP2), and put together again.

`fully_shard` is called here and not by Accelerate's plugin, for two reasons: Accelerate shards on accelerators only,
and it puts the last norm and the output matrix in a group of their own, which goes by calls of both modules. Our
models read the matrix without calling its module (kernels/logprobs.py), so that it would be stale after a step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from deltarl.model.hybrid import DecoderLayer
from deltarl.rl.batch import TrainSample
from deltarl.rl.config import Sharding


def join(module: nn.Module, accelerator: Accelerator, sharding: Sharding) -> Any:
    """`module` as this rank trains it together with the others. Its optimizer is to be made afterwards, because
    sharding replaces the parameters.

    Raises:
        ValueError: to be sharded, with a single rank.
    """
    if sharding == "none":
        return accelerator.prepare(module)
    if accelerator.num_processes == 1:
        raise ValueError(
            f"learner.sharding = {sharding!r} needs several ranks: raise learner.num_ranks, or use sharding=none"
        )
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if sharding == "fsdp_offload" else OffloadPolicy()
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in sharded_layers(module):
        fully_shard(layer, mesh=mesh, offload_policy=offload)
    # Also the root gives its whole weights back after a forward pass: without a backward pass, none would do it.
    return fully_shard(module, mesh=mesh, reshard_after_forward=True, offload_policy=offload)


def even(runs: Sequence[list[TrainSample]], accelerator: Accelerator) -> list[list[TrainSample]]:
    """The micro-batches of this rank, with empty ones up to as many as any rank has: sharded weights are put together
    in every pass, so that all ranks must make as many."""
    count = torch.tensor([len(runs)], device=accelerator.device)
    most = int(accelerator.gather(count).max())
    return [*runs, *([] for _ in range(most - len(runs)))]


def whole(tensors: Mapping[str, Tensor], keep: bool, copy: bool = False) -> dict[str, Tensor]:
    """The tensors put together from the shards of all ranks, in the memory of the host; to be called on every rank.

    Args:
        keep: on this rank. Others get nothing, and hold one tensor at a time.
        copy: also those that are not sharded, which are else the very tensors given.
    """
    found = {}
    for name, x in tensors.items():
        y = whole_tensor(x)
        if keep:
            # A copy, because what is put together from uneven shards is a piece of a longer tensor.
            found[name] = y.detach().to("cpu", copy=True) if copy or isinstance(x, DTensor) else y
    return found


def whole_tensor(x: Tensor) -> Tensor:
    """One tensor put together from the shards of all ranks, if it is sharded."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def like(x: Tensor, p: Tensor) -> Tensor:
    """This rank's part of the whole tensor `x`, where and as `p` is."""
    if not isinstance(p, DTensor):
        return x.to(p.device)
    # Back to the device of `p`, which is the host where it is offloaded.
    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None).to(p.device)


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, which every rank has read, into a module that may be sharded."""
    own = module.state_dict()
    module.load_state_dict({name: like(x, own[name]) if name in own else x for name, x in state.items()})


def sharded_layers(module: nn.Module) -> list[nn.Module]:
    """The layers, each of which is put together on its own when it is needed; what is in none is one more part."""
    names = {name for m in module.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    return [m for m in module.modules() if isinstance(m, DecoderLayer) or type(m).__name__ in names]
