"""For objects that must know when their process is forked.

A fork has copies of their sockets and locks, but not the threads that hold them, so a lock may stay closed for ever.
"""

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Something that does not survive a fork as it is."""

    def after_fork(self) -> None:
        """Called in the fork, before anything else runs in it: start afresh, with locks of its own."""


def register(item: ForkAware) -> None:
    """Have ``item.after_fork`` called in every fork of this process, for as long as ``item`` exists."""
    _registered.add(item)


def _after_fork() -> None:
    for item in _registered:
        item.after_fork()


_registered: "weakref.WeakSet[ForkAware]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
