"""Weights as plain arrays with a version and a checksum: what travels from the learner to the samplers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor, nn


class WeightMismatchError(RuntimeError):
    """Weights that are not what their publisher said, or do not fit the model."""


@dataclass(frozen=True)
class WeightUpdate:
    """One published version of a model's weights.

    Attributes:
        version: 0 for the weights a run starts from, then one more per learner update.
        checksum: of all arrays, by `checksum`.
        arrays: numpy (bf16 as its raw 16-bit pattern), because Ray passes numpy between processes without a copy.
    """

    version: int
    checksum: str
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, model: nn.Module, version: int, dtypes: Mapping[str, torch.dtype] | None = None) -> "WeightUpdate":
        """`dtypes`: of the receiver's tensors by name, if they are not those of `model`."""
        return cls.of_state(model.state_dict(), version, dtypes)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], version: int, dtypes: Mapping[str, torch.dtype] | None = None
    ) -> "WeightUpdate":
        """The same from a state dict, which may have been put together from the shards of several ranks."""
        arrays = {name: _to_array(x if dtypes is None else x.to(dtypes[name])) for name, x in state.items()}
        return cls(version, checksum(arrays), arrays)

    def load_into(self, model: nn.Module) -> None:
        """Copies the arrays into `model` and verifies what arrived there.

        Raises:
            WeightMismatchError: names, shapes, dtypes or the checksum of the arrays differ (nothing is changed then),
                or the checksum of the model's own memory afterwards is not the published one.
        """
        state = model.state_dict()
        if state.keys() != self.arrays.keys():
            differ = sorted(state.keys() ^ self.arrays.keys())
            raise WeightMismatchError(f"weights version {self.version} and the model differ in {differ[:5]}")
        for name, x in state.items():
            if plain_array(x[:0]).dtype != self.arrays[name].dtype:
                raise WeightMismatchError(f"{name}: got {self.arrays[name].dtype} values for a {x.dtype} tensor")
            if tuple(x.shape) != self.arrays[name].shape:
                raise WeightMismatchError(
                    f"{name}: got shape {self.arrays[name].shape}, the model has {tuple(x.shape)}"
                )
        if checksum(self.arrays) != self.checksum:
            raise WeightMismatchError(
                f"weights version {self.version} do not have their published checksum; publish them again"
            )
        with torch.no_grad():
            for name, x in state.items():
                if x.device.type == "cpu" and x.is_contiguous():
                    np.copyto(plain_array(x), self.arrays[name])
                else:
                    array = torch.tensor(self.arrays[name])  # a copy: arrays from the object store are read-only
                    x.copy_(array.view(torch.bfloat16) if x.dtype == torch.bfloat16 else array)
        arrived = checksum({name: plain_array(x) for name, x in model.state_dict().items()})
        if arrived != self.checksum:
            raise WeightMismatchError(
                f"weights version {self.version}: checksum {arrived} after loading, {self.checksum} published"
            )


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of names, shapes, dtypes and bytes, independent of order.

    XXH3, 128 bits: against accidents, not against an enemy, and as fast as memory is read.
    """
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def plain_array(x: Tensor) -> np.ndarray:
    """The tensor's own memory where it is on the CPU and contiguous, else a copy; bf16 as its raw 16-bit pattern."""
    x = x.detach().cpu().contiguous()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def _to_array(x: Tensor) -> np.ndarray:
    """A copy: the weights go on changing."""
    array = plain_array(x)
    return array.copy() if x.device.type == "cpu" else array
