"""Weights as buckets of bytes, which are what is sent at a time."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from deltarl.model.weight_notice import flat_bytes

# Bytes at a time: small tensors together in one buffer, large ones in pieces out of their memory.
BUCKET = 64 << 20


class Bucket:
    """Bytes of one tensor, or of several in a buffer of their own."""

    def __init__(self, parts: list[Tensor], device: torch.device):
        self._parts = parts
        self._copied = len(parts) > 1 or parts[0].device.type != device.type
        if self._copied:
            self.buffer = torch.empty(sum(x.numel() for x in parts), dtype=torch.uint8, device=device)
        else:
            self.buffer = parts[0]

    def pack(self, sending: bool) -> None:
        self._sending = sending
        if sending and self._copied:
            for part, space in self._pairs():
                space.copy_(part)

    def unpack(self) -> None:
        if self._copied and not self._sending:
            for part, space in self._pairs():
                part.copy_(space)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._parts, self.buffer.split([x.numel() for x in self._parts]), strict=True)


def cut(tensors: Mapping[str, Tensor], device: torch.device) -> Iterator[Bucket]:
    """The tensors' bytes in order of their names, in buckets of at most `BUCKET`."""
    parts, size = list[Tensor](), 0
    for name in sorted(tensors):
        for part in flat_bytes(tensors[name]).split(BUCKET):
            if parts and size + part.numel() > BUCKET // 4:
                yield Bucket(parts, device)
                parts, size = [], 0
            if part.numel():
                parts.append(part)
                size += part.numel()
    if parts:
        yield Bucket(parts, device)
