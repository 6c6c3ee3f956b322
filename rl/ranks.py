"""Which process this is among those that train together."""

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Accelerate joins processes over gloo only where it is told that there is no accelerator."""
    return not torch.cuda.is_available()


def rank_state() -> PartialState:
    """Accelerate's view of the ranks; joins them the first time it is called."""
    return PartialState(cpu=on_cpu())
