"""Length-prefixed JSON between the pool and its workers: no pickle, so a message can only ever be data."""

import json
import struct
from typing import Any, BinaryIO

HEADER = struct.Struct(">I")


def encode(message: dict[str, Any]) -> bytes:
    """One frame: a big-endian 32-bit length and that many bytes of JSON."""
    payload = json.dumps(message).encode("ascii")
    return HEADER.pack(len(payload)) + payload


def read(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message of a blocking stream, or None where it ends."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    return decode(stream.read(size))


def decode(payload: bytes) -> dict[str, Any]:
    """The message in a frame's JSON."""
    return json.loads(payload)
