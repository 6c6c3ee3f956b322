"""What RL needs of whoever samples. The native engine, vLLM and transformers each are one."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from deltarl.model.weights import WeightUpdate
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams


@runtime_checkable
class RolloutBackend(Protocol):
    """Samples answers under weights that it is given from time to time. One thread calls it."""

    @property
    def weight_version(self) -> int:
        """Of the weights that the next token is sampled with; 0 for those it began with."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """Samples `params.n` answers to each prompt of token ids; results are in the order of the prompts.

        `logprobs` of an answer are what the learner computes for its tokens: those of `softmax(logits / temperature)`
        over the whole vocabulary. The same seed gives the same answer, whatever else is sampled with it.

        Raises:
            ValueError: a prompt or parameters that cannot be honoured; then none of the prompts is sampled.
        """
        ...

    def load_weights(self, update: WeightUpdate) -> None:
        """Takes over published weights.

        Raises:
            WeightMismatchError: they do not fit, or what arrived is not what was published.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds. It may be called more than once, and nothing else after it."""
        ...
