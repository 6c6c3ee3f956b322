"""A sampler that is given new weights while it samples, and goes on with them from its next token."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

from deltarl.model.weights import WeightUpdate
from deltarl.rollout.engine import Engine, InFlight
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.worker import RolloutWorker


class InFlightWorker(RolloutWorker):
    """Samples with the newest weights there are. `load_weights` may be called by another thread during `generate`.

    Versions only go up: an update that is not newer than what the worker has is ignored.
    """

    def __init__(self, model_path: str, *, in_flight: InFlight, **options: Any):
        """
        Args:
            in_flight: what new weights mean for answers under way, see `Engine`.
            options: of `RolloutWorker`.

        Raises:
            ValueError: the backend is not the native engine.
        """
        super().__init__(model_path, **options)
        if not isinstance(self._backend, Engine):
            raise ValueError(f"a {type(self._backend).__name__} takes weights between two calls alone: use the native")
        self._engine = self._backend
        self._engine.in_flight = in_flight
        self._waiting: WeightUpdate | None = None  # the newest that was handed over and is not loaded
        self._handing_over = Lock()  # whoever looks at it or changes it
        self._sampling = Lock()  # whoever steps the engine or loads weights into it

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        """See `RolloutBackend.generate`; new weights are loaded between two decode steps.

        Raises:
            WeightMismatchError: weights that arrived meanwhile do not fit, or are not what was published.
        """
        with self._sampling:
            return self._engine.generate(prompts, params, before_step=self._take_over)

    def load_weights(self, update: WeightUpdate) -> None:
        """Loads them now if the worker is idle. If it samples, that thread does, before its next token.

        Raises:
            WeightMismatchError: they do not fit, or are not what was published; of a worker that samples, `generate`
                raises it.
        """
        with self._handing_over:
            if self._waiting is None or update.version > self._waiting.version:
                self._waiting = update
        # One that has just sampled its last token leaves them waiting, for the first step of the next call.
        if self._sampling.acquire(blocking=False):
            try:
                self._take_over()
            finally:
                self._sampling.release()

    def _take_over(self) -> None:
        with self._handing_over:
            update, self._waiting = self._waiting, None
        if update is not None and update.version > self._engine.weight_version:
            self._engine.load_weights(update)
