"""Parameters that are used side by side, joined to one matrix for a sampler, which does not change them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def side_by_side(parts: Sequence[Tensor], room: Tensor | None) -> Tensor:
    """`torch.cat` of parameters `[n_i, ...]` along the first dimension, without a gradient.

    It stays where it is in memory if it fits into `room`, the result of an earlier call: a CUDA graph that reads it
    need not be captured anew.
    """
    shape, like = (sum(len(p) for p in parts), *parts[0].shape[1:]), parts[0]
    with torch.inference_mode(False), torch.no_grad():
        if room is None or (room.shape, room.dtype, room.device) != (shape, like.dtype, like.device):
            room = torch.empty(shape, dtype=like.dtype, device=like.device)
        return torch.cat([p.detach() for p in parts], out=room)
