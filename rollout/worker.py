"""A sampler as a fleet hosts it: an engine over its own copy of the policy."""

import os
from collections.abc import Sequence

from deltarl.model.checkpoint import load_model
from deltarl.model.weights import WeightUpdate
from deltarl.rollout.engine import Engine
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams


class RolloutWorker:
    """Samples with the weights it was last given."""

    def __init__(self, model_path: str, *, max_num_seqs: int, max_model_len: int | None = None):
        self._engine = Engine(load_model(model_path), max_num_seqs=max_num_seqs, max_model_len=max_model_len)

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        """See `Engine.generate`."""
        return self._engine.generate(prompts, params)

    def load_weights(self, update: WeightUpdate) -> None:
        """See `Engine.load_weights`."""
        self._engine.load_weights(update)

    def pid(self) -> int:
        """Process id, for whoever watches the process."""
        return os.getpid()
