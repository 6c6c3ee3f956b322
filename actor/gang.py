"""Ranks that work in step: every call goes to all of them at once, and none can do without the others."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from deltarl.actor.fleet import WorkerLostError
from deltarl.actor.host import WorkerSpec, wait_all
from deltarl.actor.meeting import LOOPBACK, meeting_point


class Gang:
    """`size` actors joined by torch.distributed (through the environment variables torchrun would set)."""

    def __init__(self, name: str, spec: WorkerSpec, size: int):
        """Starts the ranks and waits until they have found each other.

        Raises:
            WorkerLostError: a rank's constructor raised.
        """
        self.name = name
        env = _rendezvous(size, bool(spec.num_gpus), meeting_point(spec.places)) if size > 1 else [{}]
        self._specs = [replace(spec, index=i, env={**spec.env, **own}) for i, own in enumerate(env)]
        self._ranks = [spec.spawn() for spec in self._specs]
        self._get(self.submit("__ray_ready__"), "start")

    def __len__(self) -> int:
        return len(self._ranks)

    def scatter(self, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`rank.method(*args[rank])` on every rank; results by rank.

        Raises:
            WorkerLostError: a rank died. The others cannot go on; resume from the last checkpoint.
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
        which stays where it is."""
        refs = self.submit(method, *args)
        self._get(refs, method)
        return refs[0]

    def close(self) -> None:
        """Ends the ranks."""
        for rank in self._ranks:
            ray.kill(rank)

    def _get(self, refs: list[ray.ObjectRef], what: str) -> list[Any]:
        wait_all(refs, f"{self.name} to {what}")
        try:
            return ray.get(refs)
        except RayActorError as error:
            lost = next(spec for spec, ref in zip(self._specs, refs, strict=True) if _died(ref))
            raise WorkerLostError(
                f"a {self.name} process died; start the same command again to go on from the last checkpoint. It was "
                f"{lost.label}: {error}"
            ) from error


def _died(ref: ray.ObjectRef) -> bool:
    try:
        ray.get(ref)
    except RayActorError:
        return True
    except Exception:  # of the method
        return False
    return False


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
