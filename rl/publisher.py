"""New weights from the learner to the samplers, whichever way they go.

Each way, the learner says which version it is and what its checksum is, and each sampler verifies what it loaded.
Where weights do not arrive in another way than the object store, they go through it.
"""

import logging
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
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
            in_flight: samplers take weights over in the middle of their work; through the object store alone.
        """
        self._transport, self._own_gpus = transport, own_gpus
        self._rollout, self._learner, self._ahead = rollout, learner, ahead
        self._copy, self._in_flight, self._seconds = copy, in_flight, seconds
        self._delivered = -1  # the newest version that the samplers have
        self._members: Mapping[int, Any] = {}  # of the group
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
            try:
                by_rank = self._learner.broadcast("offer_weights", self._transport, self._copy, self._delivered)
            except StateLostError:
                raise
            except Exception as error:  # no handle of this memory can be made, say, or there is none for a copy
                log.warning("the learner cannot offer its weights by %s: %s", self._transport, error)
                self._failed()
            else:
                self._ahead.do(self._deliver, [offer for offer in by_rank if offer is not None])
                return
        weights = self._learner.first("weights")
        if self._in_flight:
            assert isinstance(self._rollout, Fleet)  # never in one process
            self._rollout.hand_over("load_weights", weights)
            self._ahead.do(self._rollout.settle)  # whatever is asked for from now on meets these weights
        else:
            self._ahead.do(self._rollout.broadcast, "load_weights", weights)

    def _deliver(self, offers: list[Any]) -> None:
        rollout, learner = self._rollout, self._learner
        assert isinstance(rollout, Fleet)
        assert isinstance(learner, Gang)
        notice: Notice = offers[0] if self._transport == "collective" else offers[0].notice
        kept: list[Any] = []  # the version in the object store, once somebody needs it there

        def through_the_store() -> tuple[Any]:
            if not kept:
                kept.append(learner.later("offered_weights", notice.version))
            return (kept[0],)

        rollout.remember("load_weights", through_the_store)
        ready = rollout.ready()
        calls = self._calls(ready, notice) if self._transport == "collective" else dict.fromkeys(ready, (offers,))
        within = 3 * self._seconds + notice.nbytes / SLOWEST
        answers = rollout.gather("receive_weights", calls, within)
        failed = {index: why for index, why in answers.items() if why is not None}
        if failed:
            log.warning(
                "weights version %d did not get to %d of %d samplers by %s (%s); they go through the object store",
                *(notice.version, len(failed), len(calls), self._transport, next(iter(failed.values()))),
            )
            rollout.gather("load_weights", dict.fromkeys(failed, through_the_store()))
        if failed or len(answers) < len(calls):  # those that died, or hung and were killed, gave no answer
            self._members = {}
            self._failed()
        else:
            self._failures = 0
        self._delivered = notice.version

    def _failed(self) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            log.warning("that was %d times in a row: from now on all weights go through the object store", FAILURES)

    def _calls(self, ready: Mapping[int, Any], notice: Notice) -> dict[int, tuple[Notice, Call]]:
        """What each sampler is told of the broadcast: a group of those that are there, anew if these are others."""
        attempt = uuid4().hex
        if ready != self._members:
            self._members, self._group = ready, attempt
        backend: Backend = "nccl" if self._own_gpus else "gloo"
        size, common = len(ready) + 1, (attempt, self._group)
        return {
            index: (notice, Call(*self._host, notice.version, *common, size, rank, backend, self._seconds))
            for rank, index in enumerate(sorted(ready), start=1)
        }
