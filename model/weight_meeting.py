"""Weights by broadcast: how the learner and the samplers come together for each.

They meet at a store that the learner hosts, and nobody enters a broadcast before all have said there that they are
here: one that has died is a line in the log, and not a collective operation that waits for ever. What is beyond that
has a time limit.
"""

import json
import logging
import socket
import threading
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from deltarl.model.weight_group import Call, Member, TransferError
from deltarl.model.weight_notice import Notice

log = logging.getLogger(__name__)

ORDERS = "orders"  # a queue in the store


class Receiver:
    """A sampler's side: fetches the weights of a `Notice`."""

    def __init__(self) -> None:
        self._member: Member | None = None
        self._host: tuple[str, int] | None = None

    def receive(self, notice: Notice, call: Call, state: Mapping[str, Tensor]) -> None:
        """
        Args:
            state: of the model, or tensors like these, which the weights are written to.

        Raises:
            TransferError: they did not arrive.
            WeightMismatchError: they do not fit, or what arrived is not what was published.
        """
        notice.check_fits(state)
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
        notice.check_arrived(state)

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
