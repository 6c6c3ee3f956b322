"""What the pool, its fork server and its workers say to each other: no pickle, so a message can only ever be data.

The pool and a worker exchange length-prefixed JSON. The pool commands the fork server with one number: the process id
of a worker to kill, or 0 to fork one for the socket that is sent along.
"""

import json
import socket
import struct
from typing import Any, BinaryIO

HEADER = struct.Struct(">I")
_COMMAND = struct.Struct(">i")
_FORK = 0


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


def send_fork(control: socket.socket, connection: socket.socket) -> None:
    """Ask the fork server for a worker at the other end of ``connection``."""
    socket.send_fds(control, [_COMMAND.pack(_FORK)], [connection.fileno()])


def send_kill(control: socket.socket, pid: int) -> None:
    """Ask the fork server to kill the worker ``pid``."""
    control.sendall(_COMMAND.pack(pid))


def receive_command(control: socket.socket) -> socket.socket | int | None:
    """The socket of a worker to fork, or the process id of one to kill; None where the commands end."""
    data, fds, _, _ = socket.recv_fds(control, _COMMAND.size, 1)
    if len(data) < _COMMAND.size:
        return None
    if fds:
        return socket.socket(fileno=fds[0])
    return int(_COMMAND.unpack(data)[0])
