"""Weights by broadcast: the learner's first rank and the samplers as a process group of their own.

Beside the default group of the learner's ranks, which samplers are not in. They meet at a store that the learner hosts,
and nobody enters a broadcast before all have said there that they are here: one that has died is a line in the log, and
not a collective operation that waits for ever. What is beyond that has a time limit.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from deltarl.model.weight_buckets import Bucket, cut
from deltarl.model.weight_notice import Notice

log = logging.getLogger(__name__)

Backend = Literal["gloo", "nccl"]

IN_FLIGHT = 2  # buckets, and so the memory that sending and receiving need
LOOPBACK = "127.0.0.1"
ORDERS = "orders"  # a queue in the store


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


# ---------------------------------------------------------------------------------------------------------- meeting


class Receiver:
    """A sampler's side: fetches the weights of a `Notice`."""

    def __init__(self) -> None:
        self._member: Member | None = None
        self._host: tuple[str, int] | None = None

    def receive(self, notice: Notice, call: Call, model: nn.Module) -> None:
        """
        Raises:
            TransferError: they did not arrive.
            WeightMismatchError: they do not fit, or what arrived is not what was published.
        """
        state = notice.check_fits(model)
        if call.backend == "nccl" and not all(x.is_cuda for x in state.values()):
            raise TransferError("NCCL is for GPUs, and this sampler's weights are not on one")
        member = self._met(call)
        with torch.no_grad():
            # Hardly any tensor of a model is not contiguous; those that are not are received beside it.
            into = {name: x if x.is_contiguous() else torch.empty_like(x).contiguous() for name, x in state.items()}
            member.stream(into, call)
            for name, x in state.items():
                if into[name] is not x:
                    x.copy_(into[name])
        notice.check_arrived(model)

    def _met(self, call: Call) -> Member:
        """Says that this sampler is here, and waits until all are."""
        try:
            if self._member is None or self._host != (call.address, call.port):
                limit = timedelta(seconds=call.seconds)
                store = distributed.TCPStore(call.address, call.port, None, False, limit, wait_for_workers=False)
                self._member, self._host = Member(store, _address_towards(call.address)), (call.address, call.port)
            store = self._member.store
            store.set(f"{call.attempt}/here/{call.rank}", "")
            if store.add(f"{call.attempt}/asked", 1) == 1:
                store.queue_push(ORDERS, json.dumps(asdict(call)))
            # Longer than the learner waits for the others: it says who is missing.
            store.wait([f"{call.attempt}/go"], timedelta(seconds=2 * call.seconds))
            answer = store.get(f"{call.attempt}/go").decode()
        except distributed.DistError as error:
            if self._member is not None:
                self._member.leave()
            self._member = None
            raise TransferError(
                f"the learner does not answer at {call.address}: {str(error).splitlines()[0]}"
            ) from error
        if answer:
            raise TransferError(answer)
        return self._member


class Sender:
    """The learner's side: a store to meet at, and a thread that sends while the learner does something else."""

    def __init__(self, held: Any, address: str):
        """
        Args:
            held: `held(version)` gives the tensors to send and, if these are on a GPU, the event after which they are
                what they should be; raises KeyError for a version that is not there.
            address: to listen at.
        """
        self._held, self._address = held, address
        listening = socket.create_server((address, 0))
        self.port: int = listening.getsockname()[1]
        self._store = distributed.TCPStore(
            *(address, self.port, None, True, timedelta(minutes=1)),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        threading.Thread(target=self._serve, name="weights", daemon=True).start()

    def _serve(self) -> None:
        # A connection of its own, in which nothing else has to wait for the next order.
        orders = distributed.TCPStore(self._address, self.port, None, False, timedelta(days=1), wait_for_workers=False)
        member = Member(self._store, self._address)
        stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        before: list[str] = []
        while True:
            call = Call(**json.loads(orders.queue_pop(ORDERS)) | {"rank": 0})
            with torch.cuda.stream(stream):
                self._send(member, call)
            for key in before:  # nobody waits for these any more
                self._store.delete_key(key)
            before = [f"{call.attempt}/{key}" for key in ("go", "asked", *map("here/{}".format, range(1, call.size)))]

    def _send(self, member: Member, call: Call) -> None:
        go = f"{call.attempt}/go"
        try:
            tensors, made = self._held(call.version)
        except KeyError:
            self._store.set(go, f"the learner has no version {call.version} any more")
            return
        here = {rank: f"{call.attempt}/here/{rank}" for rank in range(1, call.size)}
        try:
            self._store.wait(list(here.values()), timedelta(seconds=call.seconds))
        except distributed.DistError:
            missing = [rank for rank, key in here.items() if not self._store.check([key])]
            self._store.set(go, f"{len(missing)} of {call.size - 1} did not come in {call.seconds:g} s")
            return
        self._store.set(go, "")
        try:
            if made is not None:
                made.wait()
            member.stream({name: x.contiguous() for name, x in tensors.items()}, call)
        except TransferError:
            return  # the samplers have noticed too, and say so
        except Exception:  # out of memory, say; there are further versions to send
            log.exception("version %d of the weights was not sent", call.version)
            member.leave()


def _address_towards(host: str) -> str:
    """This machine's address as `host` sees it."""
    family = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect((host, 1))  # sends nothing
        address: str = s.getsockname()[0]
    return address
