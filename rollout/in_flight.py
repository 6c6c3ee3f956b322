"""A sampler that fetches new weights while it samples, and goes on with them from its next token."""

from collections.abc import Sequence
from threading import Lock
from typing import Any, cast

from deltarl.model.weight_group import Call, TransferError
from deltarl.model.weights import WeightMismatchError, WeightUpdate
from deltarl.rollout.engine import Engine, InFlight
from deltarl.rollout.fetched import Fetched, Offer, Staged, Staging
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.worker import RolloutWorker


class InFlightWorker(RolloutWorker):
    """Samples with the newest weights there are. During `generate` another thread, always the same, may call
    `load_weights` and `receive_weights`.

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
        self._staging = Staging(self._engine.model)
        self._waiting: WeightUpdate | Staged | None = None  # the newest that was handed over and is not loaded
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
        self._hand_over(update)

    def receive_weights(self, offer: Offer, call: Call | None = None) -> str | None:
        """Fetches published weights from the learner while the worker samples, and returns when they are loaded: by
        this thread if the worker is idle, otherwise by the one that samples, before its next token.

        Returns:
            Why they are not here, if they are not; the worker samples on with those that it has.

        Raises:
            WeightMismatchError: they arrived, and what was loaded of them is something else; of a worker that samples,
                `generate` raises it.
        """
        try:
            staged = self._staging.fetch(Fetched(offer, call, self._receiver))
        except (TransferError, WeightMismatchError) as error:
            return str(error)
        self._hand_over(staged)
        while self._waiting is staged:  # and so the staged memory, or the learner's, needed
            self._load_if_idle(within=0.01)
        with self._handing_over:  # the thread that took them over is done
            return None

    def _hand_over(self, weights: WeightUpdate | Staged) -> None:
        with self._handing_over:
            if self._waiting is None or weights.version > self._waiting.version:
                self._waiting = weights
        # One that has just sampled its last token leaves them waiting, for the first step of the next call.
        self._load_if_idle()

    def _load_if_idle(self, within: float = 0.0) -> None:
        if self._sampling.acquire(timeout=within):
            try:
                self._take_over()
            finally:
                self._sampling.release()

    def _take_over(self) -> None:
        with self._handing_over:
            weights, self._waiting = self._waiting, None
            if weights is not None and weights.version > self._engine.weight_version:
                self._engine.load_weights(cast(Any, weights))  # has all that the engine uses of a WeightUpdate
