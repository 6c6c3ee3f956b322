"""Parameters that are used side by side, kept as one matrix while nobody trains them."""

import torch
from torch import Tensor


class SideBySide:
    """`torch.cat` of some parameters along the first dimension; kept in inference mode, in which only samplers run.

    It stays where it is in memory when it is computed again, so that a CUDA graph that reads it need not be captured
    anew. It is computed again after a change that the parameters count, and after `forget`: PyTorch's fused optimizers
    change parameters and do not count it. Outside inference mode it is a plain `torch.cat`, and nothing is kept.
    """

    def __init__(self) -> None:
        self._joined: Tensor | None = None
        self._seen: list[tuple[int, int]] = []

    def of(self, parts: list[Tensor]) -> Tensor:
        """
        Args:
            parts: parameters, `[n_i, ...]`; always the same ones for an object of this class.
        """
        if not torch.is_inference_mode_enabled() or any(p.is_inference() for p in parts):
            return torch.cat(parts)
        seen = [(p.data_ptr(), p._version) for p in parts]
        if seen != self._seen:
            self._joined = self._room(parts)
            with torch.inference_mode(False), torch.no_grad():
                torch.cat([p.detach() for p in parts], out=self._joined)
            self._seen = seen
        assert self._joined is not None  # with the first parts
        return self._joined

    def forget(self) -> None:
        """Has the next `of` compute it again."""
        self._seen = []

    def _room(self, parts: list[Tensor]) -> Tensor:
        shape = (sum(len(p) for p in parts), *parts[0].shape[1:])
        old = self._joined
        if old is not None and (old.shape, old.dtype, old.device) == (shape, parts[0].dtype, parts[0].device):
            return old
        with torch.inference_mode(False):
            return torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device)
