"""New weights from the learner to the samplers, whichever way they go.

Each way, the learner says which version it is and what its checksum is, and each sampler verifies what it loaded.
Where weights do not arrive in another way than the object store, they go through it.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any
from uuid import uuid4

import ray
from ray import ObjectRef

from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
from deltarl.actor.heartbeat import Where
from deltarl.actor.host import StateLostError
from deltarl.model.weight_group import Backend, Call
from deltarl.model.weight_notice import Notice
from deltarl.rl.ahead import Ahead
from deltarl.rl.in_process import InProcess
from deltarl.rl.transport import Transport

log = logging.getLogger(__name__)

SECONDS = 60.0  # that samplers may keep each other waiting, and that a bucket of a broadcast may take
SLOWEST = 50e6  # bytes/s; a sampler that takes longer than the whole takes at this rate hangs, and is killed
FAILURES = 3  # in a row, after which all weights go through the object store


class Publisher:
    """Has samplers load each version after they have sampled what they were asked for, or in the middle of it."""

    def __init__(
        self,
        transport: Transport,
        own_gpus: bool,
        rollout: Fleet | InProcess,
        learner: Gang | InProcess,
        ahead: Ahead,
        copy: bool,
        seconds: float = SECONDS,
        *,
        in_flight: bool = False,
    ):
        """
        Args:
            own_gpus: no two of the processes have the same GPU, so that a broadcast may use NCCL.
            copy: the learner goes on while samplers load: they load from a copy.
            in_flight: samplers take weights over in the middle of their work.
        """
        self._transport, self._own_gpus = transport, own_gpus
        self._rollout, self._learner, self._ahead = rollout, learner, ahead
        self._copy, self._in_flight, self._seconds = copy, in_flight, seconds
        self._delivered = -1  # the newest version that the samplers have
        self._handed: tuple[int, Mapping[int, ObjectRef]] = -1, {}  # the last that samplers were to take in their work
        self._members: Mapping[int, Where] = {}  # of the group
        self._group = ""
        self._failures = 0
        self._host = ("", 0)
        if transport == "collective":
            assert isinstance(learner, Gang)  # choose_transport sees to it
            address = learner.address()
            self._host = address, learner.broadcast("listen", address)[0]

    def publish(self) -> None:
        """The learner's weights as they are now. It waits until the learner may go on, and for samplers only where
        these are not ahead of it."""
        if self._failures < FAILURES and self._transport != "object_store":
            if self._in_flight:
                self._look()
            try:
                by_rank = self._learner.broadcast("offer_weights", self._transport, self._copy, self._delivered)
            except StateLostError:
                raise
            except Exception as error:  # no handle of this memory can be made, say, or there is none for a copy
                log.warning("the learner cannot offer its weights by %s: %s", self._transport, error)
                self._failed()
            else:
                offers = [offer for offer in by_rank if offer is not None]
                if self._in_flight:
                    self._hand_out(offers)
                else:
                    self._ahead.do(self._deliver, offers)
                return
        weights = self._learner.first("weights")
        if self._in_flight:
            assert isinstance(self._rollout, Fleet)  # never in one process
            self._rollout.hand_over("load_weights", weights)
            self._ahead.do(self._rollout.settle)  # what is asked for from now on meets these weights
        else:
            self._ahead.do(self._rollout.broadcast, "load_weights", weights)

    def _deliver(self, offers: list[Any]) -> None:
        """Has every sampler fetch the weights, between two batches."""
        rollout, notice, stored = self._fleet(), self._notice(offers), self._stored(offers)
        rollout.remember("load_weights", stored)
        calls = self._calls(rollout.ready(), offers)
        answers = rollout.gather("receive_weights", calls, self._within(notice))
        self._conclude(notice, stored, len(calls), answers)

    def _hand_out(self, offers: list[Any]) -> None:
        """Has every sampler fetch the weights now, beside its work; what is asked for from now on waits for it."""
        notice, stored = self._notice(offers), self._stored(offers)
        calls = partial(self._calls, offers=offers)
        handed = self._fleet().hand_out("receive_weights", calls, "load_weights", stored)
        self._handed = notice.version, handed
        self._ahead.do(self._settle, notice, stored, handed)

    def _settle(self, notice: Notice, stored: Callable[[], tuple[Any]], handed: Mapping[int, ObjectRef]) -> None:
        rollout = self._fleet()
        answers = rollout.answers(handed, self._within(notice))
        for index in rollout.ready().keys() & (handed.keys() - answers.keys()):  # dead, or so late that it is killed
            answers[index] = "no answer"
        self._conclude(notice, stored, len(handed), answers)

    def _conclude(self, notice: Notice, stored: Callable[[], tuple[Any]], asked: int, answers: dict[int, Any]) -> None:
        """Sends the weights another way to those that say why they do not have them."""
        failed = {index: why for index, why in answers.items() if why is not None}
        if failed:
            log.warning(
                "weights version %d did not get to %d of %d samplers by %s (%s); they go through the object store",
                *(notice.version, len(failed), asked, self._transport, next(iter(failed.values()))),
            )
            self._fleet().gather("load_weights", dict.fromkeys(failed, stored()), self._within(notice))
        if failed or len(answers) < asked:  # those that died, or hung and were killed, gave no answer
            self._members = {}
            self._failed()
        else:
            self._failures = 0
        self._delivered = max(self._delivered, notice.version)

    def _look(self) -> None:
        """Whether the last version is with all samplers by now: else the next broadcast has a group of its own."""
        version, handed = self._handed
        ready, _ = ray.wait(list(handed.values()), num_returns=len(handed), timeout=0) if handed else ([], [])
        with suppress(Exception):  # `_settle` sees what it was
            if len(ready) == len(handed) and all(why is None for why in ray.get(ready)):
                self._delivered = max(self._delivered, version)
                return
        self._members = {}

    def _fleet(self) -> Fleet:
        assert isinstance(self._rollout, Fleet)  # choose_transport sees to it
        return self._rollout

    def _notice(self, offers: list[Any]) -> Notice:
        found: Notice = offers[0] if self._transport == "collective" else offers[0].notice
        return found

    def _stored(self, offers: list[Any]) -> Callable[[], tuple[Any]]:
        """Arguments that give a sampler the weights through the object store, where they are once somebody asks."""
        learner, version = self._learner, self._notice(offers).version
        assert isinstance(learner, Gang)
        return cache(lambda: (learner.later("offered_weights", version),))

    def _within(self, notice: Notice) -> float:
        return 3 * self._seconds + notice.nbytes / SLOWEST

    def _failed(self) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            log.warning("that was %d times in a row: from now on all weights go through the object store", FAILURES)

    def _calls(self, ready: Mapping[int, Where], offers: list[Any]) -> dict[int, tuple[Any, ...]]:
        """What each sampler is told; of a broadcast, also the group: of those that are there, anew if these are
        others."""
        if self._transport == "ipc":
            return dict.fromkeys(ready, (offers,))
        notice, attempt = self._notice(offers), uuid4().hex
        if ready != self._members:
            self._members, self._group = ready, attempt
        backend: Backend = "nccl" if self._own_gpus else "gloo"
        size, common = len(ready) + 1, (attempt, self._group)
        return {
            index: (notice, Call(*self._host, notice.version, *common, size, rank, backend, self._seconds))
            for rank, index in enumerate(sorted(ready), start=1)
        }
