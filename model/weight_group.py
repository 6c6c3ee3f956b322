"""A process group for weights, of the learner's first rank and the samplers, beside the default one of the learner's
ranks, which samplers are not in."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from deltarl.model.weight_buckets import Bucket, cut

Backend = Literal["gloo", "nccl"]

IN_FLIGHT = 2  # buckets, and so the memory that sending and receiving need
LOOPBACK = "127.0.0.1"


class TransferError(RuntimeError):
    """Weights did not get from the learner to a sampler: somebody is gone, too slow, or cannot be reached."""


@dataclass(frozen=True)
class Call:
    """What a sampler is told of a broadcast that it is to take part in.

    Attributes:
        address, port: of the learner's store.
        attempt: a name that no other broadcast has.
        group: a name; the same as in the last broadcast if the members are; then their connections are used again.
        size: of the group; the learner is rank 0.
        rank: the sampler's; at least 1.
        seconds: that anything may take: until all are here, and each bucket.
    """

    address: str
    port: int
    version: int
    attempt: str
    group: str
    size: int
    rank: int
    backend: Backend
    seconds: float


class Member:
    """A process's place in the group, which is made anew when others are to be in it. One thread calls it."""

    def __init__(self, store: distributed.TCPStore, own_address: str):
        self.store, self._address = store, own_address
        self._group: Any = None
        self._name = ""

    def stream(self, tensors: Mapping[str, Tensor], call: Call) -> None:
        """Broadcasts the tensors from rank 0 into those of the others, which are contiguous and laid out alike.

        Raises:
            TransferError: it did not come to an end; what the tensors hold is then unknown, and the group is given up.
        """
        try:
            group = self._join(call)
            device = torch.device("cuda" if call.backend == "nccl" else "cpu")
            options = distributed.BroadcastOptions()
            options.rootRank = 0
            in_flight = deque[tuple[Any, Bucket]]()
            for bucket in cut(tensors, device):
                if len(in_flight) == IN_FLIGHT:
                    _finish(*in_flight.popleft(), call)
                bucket.pack(sending=call.rank == 0)
                in_flight.append((group.broadcast([bucket.buffer], options), bucket))
            while in_flight:
                _finish(*in_flight.popleft(), call)
        except Exception as error:
            self.leave()
            reason = str(error).splitlines()[0]
            raise TransferError(f"the broadcast of version {call.version} did not come to its end: {reason}") from error

    def leave(self) -> None:
        """Gives the group up; what hangs in the background is told to end."""
        group, self._group, self._name = self._group, None, ""
        if group is not None:
            with suppress(RuntimeError):  # a backend that cannot be told has a time limit of its own
                group.abort()

    def _join(self, call: Call) -> Any:
        if self._name == call.group and self._group is not None:
            return self._group
        self.leave()
        store = distributed.PrefixStore(f"group/{call.group}", self.store)
        if call.backend == "nccl":
            if self._address == LOOPBACK:  # else it listens wherever the name of this machine leads
                os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = timedelta(days=1)  # torch would end the process after it; `_finish` is earlier
            self._group = _without_watchdog(lambda: distributed.ProcessGroupNCCL(store, call.rank, call.size, options))
        else:
            options = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = [distributed.ProcessGroupGloo.create_device(hostname=self._address)]
            options._timeout = timedelta(seconds=call.seconds)
            self._group = distributed.ProcessGroupGloo(store, call.rank, call.size, options)
        self._name = call.group
        return self._group


def _without_watchdog(make: Callable[[], Any]) -> Any:
    """A process group whose errors do not end the process: whoever waits for a bucket sees them."""
    key, before = "TORCH_NCCL_ASYNC_ERROR_HANDLING", os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    os.environ[key] = "0"
    try:
        return make()
    finally:
        del os.environ[key]
        if before is not None:
            os.environ[key] = before


def _finish(work: Any, bucket: Bucket, call: Call) -> None:
    until = time.monotonic() + call.seconds
    while not work.is_completed():
        if time.monotonic() > until:
            raise TimeoutError(f"a bucket of {bucket.buffer.numel()} bytes took over {call.seconds:g} s")
        time.sleep(0.0002)
    work.wait()
    bucket.unpack()
