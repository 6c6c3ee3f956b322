"""The running batch: one row per sample being decoded, active rows always first.

All bookkeeping of a step is tensor arithmetic over the rows; Python touches a sample when it starts and when it ends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deltarl.model.cache import HybridCache
from deltarl.rollout.params import SamplingParams, Trajectory
from deltarl.rollout.rng import derive_seed, uniform
from deltarl.rollout.sampler import sample


@dataclass(frozen=True)
class Sample:
    """One of the samples of one prompt: where it belongs in the results, and how to draw it."""

    prompt: int
    index: int
    prompt_ids: list[int]
    params: SamplingParams


class Slots:
    """Rows `0..active-1` are live. Tensors have a row per slot.

    Attributes:
        cache: the model's decode cache.
        last_token: `[S]` token to feed next.
    """

    def __init__(self, cache: HybridCache, num_slots: int, max_model_len: int):
        device = cache.length.device
        self.cache = cache
        self._max_model_len = max_model_len
        self.active = 0
        self.samples: list[Sample] = []
        self.last_token = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._seed = torch.zeros_like(self.last_token)
        self._generated = torch.zeros_like(self.last_token)
        self._limit = torch.zeros_like(self.last_token)
        self._top_k = torch.zeros_like(self.last_token)
        self._temperature = torch.zeros(num_slots, device=device)
        self._top_p = torch.ones(num_slots, device=device)
        self._stop = torch.full((num_slots, 1), -1, device=device)
        self._tokens = torch.zeros(num_slots, cache.max_len, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(num_slots, cache.max_len, device=device)

    @property
    def free(self) -> int:
        return len(self.last_token) - self.active

    def start(self, samples: list[Sample], source: HybridCache, source_rows: Tensor, logits: Tensor) -> None:
        """Forks prefilled prompts into free rows and draws each sample's first token.

        Args:
            source, source_rows: cache rows `[n]` that hold the prompts of `samples`.
            logits: `[n, vocab]` after those prompts.
        """
        begin, end = self.active, self.active + len(samples)
        rows = torch.arange(begin, end, device=self.last_token.device)
        self.cache.copy_from(source, source_rows, rows)
        params = [s.params for s in samples]
        self._seed[rows] = torch.tensor([derive_seed(s.params.seed, s.index) for s in samples], device=rows.device)
        self._generated[rows] = 0
        room = [self._max_model_len - len(s.prompt_ids) for s in samples]
        limits = [min(p.max_tokens, r) for p, r in zip(params, room, strict=True)]
        self._limit[rows] = torch.tensor(limits, device=rows.device)
        self._top_k[rows] = torch.tensor([p.top_k for p in params], device=rows.device)
        self._temperature[rows] = torch.tensor([float(p.temperature) for p in params], device=rows.device)
        self._top_p[rows] = torch.tensor([float(p.top_p) for p in params], device=rows.device)
        self._set_stop_tokens(rows, [p.stop_token_ids for p in params])
        self.samples += samples
        self.active = end
        self._draw(slice(begin, end), logits)

    def draw(self, logits: Tensor) -> None:
        """Draws the next token of every active row from `[active, vocab]` logits."""
        self._draw(slice(self.active), logits)

    def retire(self, weight_version: int) -> list[tuple[Sample, Trajectory]]:
        """Takes finished samples out and closes the gaps with rows from the end."""
        rows = slice(self.active)
        stopped = (self._stop[rows] == self.last_token[rows, None]).any(-1)
        finished = stopped | (self._generated[rows] >= self._limit[rows])
        done = finished.nonzero().squeeze(1).tolist()
        if not done:
            return []
        results = [(self.samples[row], self._trajectory(row, bool(stopped[row]), weight_version)) for row in done]
        self._close_gaps(finished, len(done))
        return results

    def _draw(self, rows: slice, logits: Tensor) -> None:
        draws = uniform(self._seed[rows], self._generated[rows])
        token, logprob = sample(logits, self._temperature[rows], self._top_k[rows], self._top_p[rows], draws)
        index = torch.arange(rows.start or 0, rows.stop, device=token.device)
        self.last_token[rows] = token
        self._tokens[index, self._generated[rows]] = token
        self._logprobs[index, self._generated[rows]] = logprob
        self._generated[rows] += 1

    def _trajectory(self, row: int, stopped: bool, weight_version: int) -> Trajectory:
        used = slice(int(self._generated[row]))
        return Trajectory(
            prompt_ids=self.samples[row].prompt_ids,
            completion_ids=self._tokens[row, used].tolist(),
            logprobs=self._logprobs[row, used].tolist(),
            weight_version=weight_version,
            finish_reason="stop" if stopped else "length",
        )

    def _close_gaps(self, finished: Tensor, count: int) -> None:
        remaining = self.active - count
        holes = finished[:remaining].nonzero().squeeze(1)
        movers = (~finished[remaining:]).nonzero().squeeze(1) + remaining
        if len(holes):
            self.cache.copy_from(self.cache, movers, holes)
            for x in self._row_tensors():
                x[holes] = x[movers]
            for hole, mover in zip(holes.tolist(), movers.tolist(), strict=True):
                self.samples[hole] = self.samples[mover]
        self.active = remaining
        del self.samples[remaining:]

    def _row_tensors(self) -> tuple[Tensor, ...]:
        integers = (self.last_token, self._seed, self._generated, self._limit, self._top_k)
        return (*integers, self._temperature, self._top_p, self._stop, self._tokens, self._logprobs)

    def _set_stop_tokens(self, rows: Tensor, stops: list[tuple[int, ...]]) -> None:
        width = max([1, *map(len, stops)])
        if width > self._stop.shape[1]:
            wider = self._stop.new_full((len(self._stop), width), -1)
            wider[:, : self._stop.shape[1]] = self._stop
            self._stop = wider
        table = [[*stop, *[-1] * (self._stop.shape[1] - len(stop))] for stop in stops]
        self._stop[rows] = torch.tensor(table, device=rows.device)
