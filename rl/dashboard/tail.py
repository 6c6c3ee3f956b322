"""Reading a file that grows: only what is new, and noticing when it is another file than before."""

import os
from pathlib import Path
from typing import NamedTuple

MARK_BYTES = 256


class Tail(NamedTuple):
    """How far a file has been read.

    Attributes:
        offset: bytes taken in; always just after a newline.
        inode: of the file they came from. A resumed run replaces its files (jsonl.truncate_after).
        mark: the last bytes before `offset`, by which a file that was rewritten in place is noticed.
    """

    offset: int = 0
    inode: int = 0
    mark: bytes = b""


START = Tail()


class NewLines(NamedTuple):
    """Whole lines that were not read before; `restarted`: all before them is void, the file begins anew."""

    data: bytes
    tail: Tail
    restarted: bool


def read_new(path: Path, tail: Tail) -> NewLines:
    """Reads the whole lines after `tail`; a last line without its newline waits for the next call.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        inode = os.fstat(file.fileno()).st_ino
        start = max(0, tail.offset - len(tail.mark))
        file.seek(start)
        same = inode == tail.inode and file.read(tail.offset - start) == tail.mark
        restarted = bool(tail.offset) and not same
        offset = tail.offset if same else 0
        file.seek(offset)
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    mark = ((tail.mark if same else b"") + data)[-MARK_BYTES:]
    return NewLines(data, Tail(offset + len(data), inode, mark), restarted)
