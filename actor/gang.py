"""Ranks that work in step: every call goes to all of them at once, and none can do without the others."""

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from deltarl.actor.heartbeat import Heartbeat, Where, kill_stopped, whereabouts
from deltarl.actor.host import DIED, StateLostError, WorkerLostError, WorkerSpec, wait_any
from deltarl.actor.meeting import LOOPBACK, address_of, meeting_point

log = logging.getLogger(__name__)


class Gang:
    """`size` actors joined by torch.distributed (through the environment variables torchrun would set)."""

    def __init__(self, name: str, spec: WorkerSpec, size: int, heartbeat: float = math.inf):
        """Starts the ranks and waits until they have found each other.

        Args:
            heartbeat: seconds that the process of a rank may stand still. After them it is killed.

        Raises:
            WorkerLostError: a rank's constructor raised.
            StateLostError: a rank died on the way.
        """
        self.name, self._heartbeat = name, Heartbeat(heartbeat)
        self._places: list[Where] = []
        env = _rendezvous(size, bool(spec.num_gpus), meeting_point(spec.places)) if size > 1 else [{}]
        self._specs = [replace(spec, index=i, env={**spec.env, **own}) for i, own in enumerate(env)]
        self._ranks = [spec.spawn() for spec in self._specs]
        self._places = self._get(self.submit("__ray_call__", whereabouts), "start")

    def __len__(self) -> int:
        return len(self._ranks)

    def scatter(self, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`rank.method(*args[rank])` on every rank; results by rank.

        Raises:
            StateLostError: a rank died. The others cannot go on and were ended; resume from the last checkpoint.
            Exception: whatever the method itself raised.
        """
        calls = zip(self._specs, self._ranks, args, strict=True)
        refs = [spec.call(rank, method, *a) for spec, rank, a in calls]
        return self._get(refs, method)

    def submit(self, method: str, *args: Any) -> list[ray.ObjectRef]:
        """Starts the same call on every rank; `done` and `results` take what it returns."""
        return [spec.call(rank, method, *args) for spec, rank in zip(self._specs, self._ranks, strict=True)]

    @staticmethod
    def done(refs: list[ray.ObjectRef], timeout: float) -> bool:
        """Whether all calls have ended (a rank that dies ends the others'), waiting at most `timeout` seconds."""
        return len(ray.wait(refs, num_returns=len(refs), timeout=timeout)[0]) == len(refs)

    def results(self, refs: list[ray.ObjectRef]) -> list[Any]:
        """What the calls returned, by rank; raises as `scatter` does."""
        return self._get(refs, "finish")

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """The same call on every rank."""
        return self.scatter(method, [args] * len(self._ranks))

    def first(self, method: str, *args: Any) -> ray.ObjectRef:
        """The call on every rank, as they may have to work on the result together; a reference to that of rank 0,
        which stays in the memory of its node: this process waits for the calls, and not for what they return.

        Raises:
            StateLostError, Exception: as `scatter`.
        """
        calls = zip(self._specs, self._ranks, strict=True)
        pairs = [spec.call_apart(rank, method, *args) for spec, rank in calls]
        self._get([done for done, _ in pairs], method)
        return pairs[0][1]

    def later(self, method: str, *args: Any) -> ray.ObjectRef:
        """The same call on rank 0 alone, not waited for: a reference to what it will return when the rank has done
        what it was given before."""
        return self._specs[0].call_apart(self._ranks[0], method, *args)[1]

    def address(self) -> str:
        """Where workers of the run can reach rank 0: on loopback, if the cluster is this machine alone."""
        return address_of(self._places[0].node)

    def close(self) -> None:
        """Ends the ranks."""
        for rank in self._ranks:
            ray.kill(rank)
        kill_stopped(self._places)

    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        return [place.pid for place in self._places]

    def _get(self, refs: list[ray.ObjectRef], what: str) -> list[Any]:
        left, failed = list(refs), None
        while left:
            waiting_for = f"{self.name} to {what} ({len(left)} of {len(refs)} not done)"
            ref = wait_any(left, waiting_for, meanwhile=self._end_stopped, every=self._heartbeat.interval)
            assert ref is not None  # it waits for ever
            left.remove(ref)
            label = self._specs[refs.index(ref)].label
            try:
                ray.get(ref)
            except (*DIED, ObjectLostError) as error:
                self.close()  # the others may wait for this one in a collective operation, which need not end
                if isinstance(error, RayActorError) and error.actor_init_failed:
                    raise WorkerLostError(f"a {self.name} process could not be started, {label}: {error}") from error
                raise StateLostError(
                    f"a {self.name} process died, {label}; start the same command again to go on from the last "
                    f"checkpoint: {error}"
                ) from error
            except Exception as error:  # of the method; but it may be that another rank died, and this one missed it
                failed = failed or error
        if failed is not None:
            raise failed
        return ray.get(refs)

    def _end_stopped(self) -> None:
        if stopped := self._heartbeat.stopped(self._places):
            log.warning("a %s process stands still (process %d was stopped); killing it", self.name, stopped[0].pid)
            kill_stopped(stopped)


def _rendezvous(size: int, own_gpu: bool, meeting_point: tuple[str, int]) -> list[dict[str, str]]:
    """Every rank's environment.

    Args:
        own_gpu: each rank sees one GPU, its own, whose number there is 0: what libraries take LOCAL_RANK for.
    """
    address, port = meeting_point
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    if address == LOOPBACK:  # else they listen wherever the name of this machine leads
        interface = "lo0" if sys.platform == "darwin" else "lo"
        common |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": "0" if own_gpu else str(rank)} for rank in range(size)]
