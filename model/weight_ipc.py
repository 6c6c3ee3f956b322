"""Weights by handle: samplers on the learner's GPU open its memory and copy from there, and no data is sent."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions

from deltarl.model.weight_group import TransferError
from deltarl.model.weight_notice import Notice


@dataclass(frozen=True)
class Handle:
    """Of one tensor: what torch opens its storage by in other processes, and where in the storage it is."""

    storage: tuple[Any, ...]
    offset: int
    stride: tuple[int, ...]


@dataclass(frozen=True)
class SharedWeights:
    """Weights in the memory of the process that published them, which must live on, and leave them as they are, until
    every sampler has loaded them.

    Attributes:
        device: that they are on, by `device_id`; no other can open them.
    """

    notice: Notice
    device: str
    handles: Mapping[str, Handle]

    def open(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The publisher's own tensors; `like` are those of the model that they are for.

        Raises:
            TransferError: they cannot be opened.
            WeightMismatchError: they do not fit.
        """
        self.notice.check_fits(like)
        try:
            return {name: opened(self.handles[name], x) for name, x in like.items()}
        except RuntimeError as error:
            raise TransferError(f"the learner's memory cannot be read: {str(error).splitlines()[0]}") from error


def open_shared(offers: Sequence[SharedWeights], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of these equal weights, of several ranks of the learner, those on the device that `like` is on; raises as
    `SharedWeights.open`."""
    here = device_id(next(iter(like.values())).device)
    found = next((shared for shared in offers if shared.device == here), None)
    if found is None:
        raise TransferError(f"the weights are on {[s.device for s in offers]}, and this sampler's on {here}")
    return found.open(like)


def device_id(device: torch.device) -> str:
    """The same for two processes if one can open what the other has there."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_properties(device).uuid} of {platform.node()}"
    return f"the CPU of {platform.node()}"


class Sharer:
    """Makes handles; those of weights that stay where they are, once: torch keeps something for each."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[reductions.StorageWeakRef, Handle]] = {}

    def share(self, notice: Notice, tensors: Mapping[str, Tensor]) -> SharedWeights:
        """
        Args:
            tensors: of the notice, all on one GPU. All on the CPU, where it is done through shared files, serves for
                tests.
        """
        devices = {x.device for x in tensors.values()}
        if len(devices) != 1:
            raise ValueError(f"handles are of tensors on one device, and these are on {sorted(map(str, devices))}")
        device = devices.pop()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # whoever opens them does not wait for what is still to be computed
        return SharedWeights(notice, device_id(device), {name: self._handle(name, x) for name, x in tensors.items()})

    def _handle(self, name: str, x: Tensor) -> Handle:
        storage, offset = reductions.StorageWeakRef(x.untyped_storage()), int(x.storage_offset())
        known = self._known.get(name)
        if known and known[0] == storage and not known[0].expired() and known[1].offset == offset:
            return known[1]
        if x.is_cuda:
            handle = Handle(reductions.reduce_tensor(x)[1], offset, x.stride())
        else:
            handle = Handle(x.untyped_storage()._share_filename_cpu_(), offset, x.stride())
        self._known[name] = reductions.StorageWeakRef(x.untyped_storage()), handle
        return handle


def opened(handle: Handle, like: Tensor) -> Tensor:
    """The publisher's tensor, of the shape and dtype of `like`."""
    if like.is_cuda:
        found: Tensor = reductions.rebuild_cuda_tensor(*handle.storage)
        return found
    storage = torch.UntypedStorage._new_shared_filename_cpu(*handle.storage)
    return torch.empty(0, dtype=like.dtype).set_(storage, handle.offset, like.shape, handle.stride)
