"""Devices that a run can be planned for without having them: the figures of their data sheets."""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from deltarl.rl.section import Section

DeviceName = Literal["a100-80gb", "h100-80gb", "h200"]


@dataclass(frozen=True)
class Device:
    """What the maker says of one GPU (SXM).

    Attributes:
        memory: bytes.
        flops: dense bf16 products, FLOP/s.
        bandwidth: of its memory, bytes/s.
        peers: to the other GPUs of its node (NVLink), bytes/s in one direction.
        host: to the host's memory (PCIe), bytes/s in one direction.
    """

    memory: float
    flops: float
    bandwidth: float
    peers: float
    host: float


# NVIDIA A100 80GB, H100 SXM and H200 SXM data sheets; NVLink's and PCIe's figures there are for both directions.
DEVICES: dict[DeviceName, Device] = {
    "a100-80gb": Device(80e9, 312e12, 2.039e12, 300e9, 32e9),
    "h100-80gb": Device(80e9, 989e12, 3.35e12, 450e9, 64e9),
    "h200": Device(141e9, 989e12, 4.8e12, 450e9, 64e9),
}


class HardwareConfig(Section):
    """What `--dry-run` plans for, instead of the machine it runs on. A run takes no notice of it."""

    device: DeviceName
    devices_per_node: PositiveInt = 8
    nodes: PositiveInt = 1
    cpus_per_node: PositiveInt = 128
    host_memory_gb: PositiveFloat = 2000.0
    """Of a node, in 10^9 bytes."""
    network_gb_per_s: PositiveFloat = 50.0
    """Between two nodes for each GPU, in 10^9 bytes/s: 400 Gbit/s is 50."""
