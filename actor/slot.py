"""One place of a fleet: who fills it, and what it is at."""

import math
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any

import ray
from ray.exceptions import RayActorError

from deltarl.actor.calls import ended
from deltarl.actor.heartbeat import Where, kill_stopped, whereabouts
from deltarl.actor.host import DIED, WorkerSpec


class Doing(Enum):
    STARTING = "starting"
    TOLD_STATE = "told the state"
    WORKING = "working"
    NOTHING = "nothing"


class Slot:
    """A worker, and the calls it was given and has not answered."""

    def __init__(self, spec: WorkerSpec):
        self._spec = spec
        self.deaths_at_start = 0  # in a row, before it could do anything
        self.where: Where | None = None  # once it is constructed
        self.within = math.inf  # seconds that what it is at may take
        self._calls: list[ray.ObjectRef] = []
        self.start()

    def start(self) -> None:
        """Fills the place, without waiting for it; until the cluster has room for it, the worker keeps starting."""
        self.worker = self._spec.spawn()
        self.where = None
        self._begin(Doing.STARTING, "start", [self._call("__ray_call__", whereabouts)], math.inf)

    def end(self) -> None:
        """Ends the worker, whatever state its process is in, and with it the calls it was given."""
        for call in self._calls:
            ended(call)
        ray.kill(self.worker)
        if self.where is not None:
            kill_stopped([self.where])

    def tell(self, state: Mapping[str, tuple[Any, ...]], within: float) -> None:
        """Has the worker told these broadcasts, in order."""
        calls = [self._call(method, *args) for method, args in state.items()]
        self._begin(Doing.TOLD_STATE, ", ".join(state), calls, within)

    def work(self, method: str, args: tuple[Any, ...], within: float) -> None:
        """Gives the worker an item, to be done within so many seconds."""
        self._begin(Doing.WORKING, method, [self._call(method, *args)], within)

    def hand_over(self, method: str, *args: Any) -> ray.ObjectRef:
        """Calls a method that runs beside whatever the worker is at."""
        return self._spec.submit(self.worker, method, *args)

    def rest(self) -> None:
        """Forgets what it is at, whose end nobody waits for any more."""
        self.doing, self._calls, self.deadline = Doing.NOTHING, [], math.inf

    @property
    def label(self) -> str:
        """The worker's name, and where its output is."""
        return self._spec.label

    @property
    def call(self) -> ray.ObjectRef | None:
        """The last call it was given; a worker does one after the other."""
        return self._calls[-1] if self._calls else None

    def is_of_another(self, error: Exception) -> bool:
        """Whether a call failed because somebody died who was to give it something, and not the worker."""
        dead = error.actor_id if isinstance(error, RayActorError) else None
        return dead is not None and dead != self.worker._actor_id.hex()

    def result(self) -> Any:
        """Of the last call, when it has ended. The worker has nothing to do afterwards.

        Raises:
            DIED, ObjectLostError: the worker or its node died.
            Exception: whatever a call raised.
        """
        calls, was = self._calls, self.doing
        self.rest()
        try:
            value = ray.get(calls)[-1]
        except DIED:
            self.deaths_at_start += was is not Doing.WORKING
            raise
        if was is Doing.STARTING:
            self.where = value
        else:
            self.deaths_at_start = 0
        return value

    def _call(self, method: str, *args: Any) -> ray.ObjectRef:
        return self._spec.call(self.worker, method, *args)

    def _begin(self, doing: Doing, what: str, calls: list[ray.ObjectRef], within: float) -> None:
        self.doing, self.what, self._calls = doing, what, calls
        self.within, self.deadline = within, time.monotonic() + within
