"""What a worker's process says, in a file of the run's folder."""

import io
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from deltarl.actor.redaction import RedactingFormatter, redacted

CHATTY = ("httpx", "ray", "transformers", "trl", "datasets", "huggingface_hub")
"""Libraries whose loggers say more than a run's user wants to read."""


def with_output_in(file: Path, cls: type) -> type:
    """`cls`, whose process appends all it says to `file` from before the constructor on."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        append_output_to(file)
        cls.__init__(self, *args, **kwargs)  # type: ignore[misc]  # `cls` itself it is, and no subclass

    return type(cls.__name__, (cls,), {"__init__": init, "__module__": cls.__module__, "__doc__": cls.__doc__})


def append_output_to(file: Path) -> None:
    """Has stdout, stderr and logging of this process and of those it starts go to the end of `file`.

    What Python writes is redacted; what C libraries write is not. Where the file cannot be written, on a node that does
    not see the run's folder, output stays where Ray has it.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    sys.stdout, sys.stderr = _Redacting(1), _Redacting(2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger(__name__).info("process %d on %s", os.getpid(), socket.gethostname())


class _Redacting(io.TextIOWrapper):
    """A text stream to a file descriptor. A secret that is written in two parts is not found."""

    def __init__(self, descriptor: int):
        file = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False))
        super().__init__(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        super().write(redacted(text))
        return len(text)
