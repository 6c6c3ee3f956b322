"""The native engine's sampling inside transformers' generation: a logits processor that draws.

transformers has one generator and one set of sampling parameters for a whole batch, and its log-probabilities are those
after truncation. So the draw is ours: a processor takes the model's logits, draws a token for every row as the engine
would, and leaves transformers one possible token to choose.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState

from deltarl.rollout.rows import Rows
from deltarl.rollout.sequence import Sample


class Drawer:
    """Draws tokens for samples, in whatever order and company transformers has them in a step."""

    def __init__(self, vocab_size: int, max_model_len: int, device: torch.device, weight_version: int):
        self._vocab_size, self._max_model_len, self._device = vocab_size, max_model_len, device
        self._weight_version = weight_version
        self._rows = self._new_rows(0)

    def draw(self, samples: Sequence[Sample], logits: Tensor) -> Tensor:
        """The next token `[n]` int64 of each of `samples`, from `[n, vocab]` logits; says which ones are finished."""
        if list(samples) != self._rows.samples:
            self._seat(samples)
        self._rows.logits[: len(logits)] = logits
        self._rows.draw(self._weight_version)
        return self._rows.last_token[: len(samples)]

    def limit(self, sample: Sample) -> int:
        """Most tokens that its answer may have."""
        request = sample.request
        return min(request.params.max_tokens, self._max_model_len - len(request.prompt))

    def write_back(self) -> None:
        """Gives the samples of the last step their answers."""
        self._rows.fetch(list(range(self._rows.active)))

    def _seat(self, samples: Sequence[Sample]) -> None:
        """Other samples than in the last step, or in another order: new rows, which go on from the answers so far."""
        self.write_back()
        self._rows = self._new_rows(len(samples), max(map(self.limit, samples)))
        self._rows.start(list(samples), [self.limit(s) for s in samples])

    def _new_rows(self, count: int, longest: int = 0) -> Rows:
        return Rows(count, longest, self._vocab_size, self._device)


def _only(tokens: Tensor, scores: Tensor) -> Tensor:
    """Scores `[n, vocab]` that leave `tokens` `[n]` alone possible."""
    return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)


class PaddedDraw(LogitsProcessor):
    """For `generate` on a batch of `samples`."""

    def __init__(self, drawer: Drawer, samples: Sequence[Sample], pad_token_id: int):
        self._drawer, self._samples, self._pad = drawer, samples, pad_token_id
        self._open = list(range(len(samples)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = input_ids.new_full((len(scores),), self._pad)
        rows = torch.tensor(self._open, device=scores.device)
        tokens[rows] = self._drawer.draw([self._samples[i] for i in self._open], scores[rows])
        self._open = [i for i in self._open if self._samples[i].finish_reason is None]
        return _only(tokens, scores)

    def all_finished(self, input_ids: Tensor, scores: object, **unused: object) -> Tensor:
        """A stopping criterion: whether nothing is left to draw, said of every row."""
        return torch.full((len(input_ids),), not self._open, device=input_ids.device)


class ContinuousDraw(ContinuousBatchingLogitsProcessor):
    """For continuous batching; each request carries the number of its sample."""

    supported_kwargs = {"sample": int}  # noqa: RUF012  # declared so by the base class
    ignored_kwargs = ()

    def __init__(self, drawer: Drawer, samples: Sequence[Sample], finished: Callable[[int], None]):
        """
        Args:
            finished: called with the number of a sample that has just got its last token.
        """
        self._drawer, self._samples, self._finished = drawer, samples, finished

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        numbers = [request.state.logit_processor_kwargs["sample"] for request in requests_with_new_token]
        return torch.tensor(numbers, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:  # type: ignore[override]
        numbers = tensor_arg[: len(scores)].tolist()
        samples = [self._samples[i] for i in numbers]
        tokens = self._drawer.draw(samples, scores)
        for i, sample in zip(numbers, samples, strict=True):
            if sample.finish_reason is not None:
                self._finished(i)
        return _only(tokens, scores)
