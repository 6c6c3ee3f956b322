"""What a sampler is told of weights that it is to fetch itself: which they are, and how to know that they arrived."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import xxhash
from torch import Tensor

from deltarl.model.weights import WeightMismatchError, checksum, plain_array

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
Digest = Literal["xxh3", "sum64"]

CHUNK = 1 << 20  # 8-byte words summed at a time: what `sum64` needs of memory beside the weights is 24 MB
STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, as int64: 2^64 over the golden ratio


@dataclass(frozen=True)
class Notice:
    """One published version of a model's weights, without the weights.

    Attributes:
        version: as `WeightUpdate.version`.
        layout: shape and dtype of each tensor, by name.
        digest: how `checksum` was taken: "sum64" where the publisher has a GPU, else "xxh3".
        checksum: of all tensors.
    """

    version: int
    layout: Layout
    digest: Digest
    checksum: str

    @classmethod
    def of(cls, version: int, tensors: Mapping[str, Tensor]) -> "Notice":
        layout = {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}
        digest: Digest = "sum64" if torch.cuda.is_available() else "xxh3"
        return cls(version, layout, digest, digest_of(tensors, digest))

    @property
    def nbytes(self) -> int:
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.layout.values())

    def check_fits(self, state: Mapping[str, Tensor]) -> None:
        """
        Args:
            state: of the model that these weights are for.

        Raises:
            WeightMismatchError: names, shapes or dtypes differ.
        """
        own: Layout = {name: (tuple(x.shape), x.dtype) for name, x in state.items()}
        differ = sorted(n for n in own.keys() | self.layout.keys() if own.get(n) != self.layout.get(n))
        if differ:
            name = differ[0]
            raise WeightMismatchError(
                f"weights version {self.version} and the model differ in {differ[:5]}: {name} is published as "
                f"{self.layout.get(name)}, the model has {own.get(name)}"
            )

    def check_arrived(self, state: Mapping[str, Tensor]) -> None:
        """Waits, on a GPU, for what the current stream has still to do.

        Raises:
            WeightMismatchError: this memory does not have the published checksum.
        """
        arrived = digest_of(state, self.digest)
        if arrived != self.checksum:
            raise WeightMismatchError(
                f"weights version {self.version}: checksum {arrived} after loading, {self.checksum} published"
            )


def digest_of(tensors: Mapping[str, Tensor], digest: Digest) -> str:
    """Digest of names, shapes, dtypes and bytes, independent of the order of the tensors.

    "xxh3" brings what is on a GPU to the host; "sum64" (see `word_sum`) is taken on the GPU, if there is one, and
    brings 8 bytes of each tensor. Against accidents, not against an enemy.
    """
    if digest == "xxh3":
        return checksum({name: plain_array(x) for name, x in tensors.items()})
    names = sorted(tensors)
    whole = xxhash.xxh3_128()
    on_gpu = torch.cuda.is_available()
    sums = [word_sum(tensors[name].cuda() if on_gpu else tensors[name]) for name in names]
    for name, total in zip(names, torch.stack(sums).tolist(), strict=True):
        whole.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}{total}".encode())
    return whole.hexdigest()


@torch.no_grad()
def word_sum(x: Tensor) -> Tensor:
    """A sum modulo 2^64 over the tensor's bytes as 8-byte words, each times an odd number that depends on where it is;
    an int64 scalar on the tensor's device, without waiting for it.

    The sum is exact, so that every device and any order of adding give the same. A changed word always shows, as an odd
    number has an inverse; several changes, words that changed places, lost or torn parts go unnoticed only where their
    differences cancel, which they have no reason to.
    """
    data = flat_bytes(x.contiguous())
    whole = data.numel() // 8 * 8
    head, tail = data[:whole], data[whole:]
    words = (head if x.storage_offset() * x.element_size() % 8 == 0 else head.clone()).view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    odd = _odd_numbers(x.device)
    for begin in range(0, words.numel(), CHUNK):
        part = words[begin : begin + CHUNK]
        total = total * STEP + (part * odd[: part.numel()]).sum()
    if tail.numel():
        last = torch.zeros(8, dtype=torch.uint8, device=x.device)
        last[: tail.numel()] = tail
        total = total * STEP + last.view(torch.int64)[0]
    return total


@cache
def _odd_numbers(device: torch.device) -> Tensor:
    """The factors of a chunk's words, int64 `[CHUNK]`; kept (8 MB), as a model has hundreds of tensors."""
    odd = 2 * torch.arange(CHUNK, dtype=torch.int64, device=device) * STEP + 1
    if odd.is_cuda:
        torch.cuda.current_stream().synchronize()  # later calls may be on other streams
    return odd


def flat_bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes `[n]`: no copy."""
    return x.detach().view(-1).view(torch.uint8) if x.dim() else x.detach().view(1).view(torch.uint8)
