"""How each row of the running batch is sampled: parameters, bias, penalties, stop tokens, as tensors over the rows.

What has to be computed in a step is known on the host, from the parameters of the rows that run: a step asks the device
nothing, and does no Python work per row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag, auto
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltarl.rollout.params import SamplingParams
from deltarl.rollout.rng import uniform
from deltarl.rollout.sampler import Draw, TopKTopP, TopTokens, sample, top_tokens


class _Need(IntFlag):
    """What a row asks for beyond a temperature."""

    GREEDY = auto()
    MIN_P = auto()
    TOP_K_TOP_P = auto()
    MIN_TOKENS = auto()
    BIAS = auto()
    PENALTIES = auto()

    @classmethod
    def of(cls, params: SamplingParams) -> int:
        neutral = params.repetition_penalty == 1 and params.presence_penalty == params.frequency_penalty == 0
        asked = {
            cls.GREEDY: params.temperature == 0,
            cls.MIN_P: params.min_p > 0,
            cls.TOP_K_TOP_P: params.top_k > 0 or params.top_p < 1,
            cls.MIN_TOKENS: params.min_tokens > 0 and bool(params.stop_token_ids),
            cls.BIAS: bool(params.logit_bias),
            cls.PENALTIES: not neutral,
        }
        return sum(flag for flag, on in asked.items() if on)


@dataclass(frozen=True)
class _Plan:
    """What a step over the first `active` rows has to do; holds until rows start, move or end."""

    active: int
    need: int
    top: TopKTopP | None
    top_n: int


class Plain(NamedTuple):
    """The key of a captured draw: whether some row is greedy, and how wide the table of stop tokens is."""

    greedy: bool
    stop_width: int


class SamplingRows:
    """Rows `0..active-1` run; a row at or beyond `active` in a draw has ended, and must be started to be used again."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device | str = "cpu"):
        self.vocab_size = vocab_size
        self._device = torch.device(device)
        self._plan: _Plan | None = None
        # On the host.
        self._need = np.zeros(num_rows, np.int64)
        self._candidates = np.zeros(num_rows, np.int64)  # tokens to rank, if top-k or top-p are needed
        self._top_n = np.full(num_rows, -1)
        # On the device.
        self._seed = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._top_k, self._min_tokens = torch.zeros_like(self._seed), torch.zeros_like(self._seed)
        self._temperature = torch.ones(num_rows, device=device)
        self._repetition, self._presence, self._frequency = (torch.ones_like(self._temperature) for _ in range(3))
        self._top_p = torch.ones(num_rows, dtype=torch.float64, device=device)
        self._min_p = torch.zeros_like(self._top_p)
        # Lists of different lengths, filled up at the end; no wider than was needed.
        self._stop = torch.zeros(num_rows, 0, dtype=torch.int64, device=device)  # filled up with -1
        self._bias_ids = torch.zeros_like(self._stop)  # filled up with a bias of 0 for token 0
        self._bias = torch.zeros(num_rows, 0, device=device)
        # Over the vocabulary, while some row has penalties.
        self._in_prompt: Tensor | None = None  # [rows, vocab] bool
        self._count: Tensor | None = None  # [rows, vocab] int32, times in the answer

    def start(
        self,
        rows: Tensor,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
    ) -> None:
        """Gives rows to new or resumed samples.

        Args:
            rows: `[n]` int64, free rows; on the CPU or the device.
            params, seeds: of each sample; a seed fits an int64 and is the sample's own (`derive_seed`).
            prompts, answers: token ids of each; `answers` are those sampled before, empty for a new sample.

        Raises:
            ValueError: see `check_params`; or a token to penalise is outside the vocabulary. No row has changed then.
        """
        for p, prompt, answer in zip(params, prompts, answers, strict=True):
            check_params(p, self.vocab_size)
            if _Need.of(p) & _Need.PENALTIES:
                _check_ids("prompt", prompt, self.vocab_size)
                _check_ids("answer", answer, self.vocab_size)
        index = rows.cpu().numpy()
        self._need[index] = [_Need.of(p) for p in params]
        self._candidates[index] = [min(p.top_k, self.vocab_size) if p.top_k > 0 else self.vocab_size for p in params]
        self._top_n[index] = [-1 if p.logprobs is None else p.logprobs for p in params]
        rows = rows.to(self._device)
        for tensor, values in (
            (self._seed, list(seeds)),
            (self._top_k, [p.top_k for p in params]),
            (self._min_tokens, [p.min_tokens for p in params]),
            (self._temperature, [float(p.temperature) for p in params]),
            (self._repetition, [float(p.repetition_penalty) for p in params]),
            (self._presence, [float(p.presence_penalty) for p in params]),
            (self._frequency, [float(p.frequency_penalty) for p in params]),
            (self._top_p, [float(p.top_p) for p in params]),
            (self._min_p, [float(p.min_p) for p in params]),
        ):
            tensor[rows] = torch.tensor(values, dtype=tensor.dtype, device=self._device)
        self._stop = _put_lists(self._stop, rows, [p.stop_token_ids for p in params], -1)
        self._bias_ids = _put_lists(self._bias_ids, rows, [list(p.logit_bias) for p in params], 0)
        self._bias = _put_lists(self._bias, rows, [list(p.logit_bias.values()) for p in params], 0.0)
        for row, p, prompt, answer in zip(index.tolist(), params, prompts, answers, strict=True):
            if _Need.of(p) & _Need.PENALTIES:
                self._count_tokens(row, prompt, answer)
        self._plan = None

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies rows `source` `[n]` int64 over rows `target` `[n]`: CPU tensors, else this waits for the device."""
        to, of = target.cpu().numpy(), source.cpu().numpy()
        for array in (self._need, self._candidates, self._top_n):
            array[to] = array[of]
        source, target = source.to(self._device), target.to(self._device)
        for tensor in self._row_tensors():
            tensor[target] = tensor[source]
        self._plan = None

    def draw(self, active: int, logits: Tensor, position: Tensor) -> tuple[Draw, TopTokens | None]:
        """Draws the next token of rows `0..active-1`, and counts it for their penalties.

        Args:
            logits: `[active, vocab]` fp32.
            position: `[active]` int64, how many tokens of the answer have been sampled before.

        Returns:
            The draw, and the most likely tokens, as many as the row that wants most of them (None if none wants any).
        """
        plan = self._plan_for(active)
        temperature = self._temperature[:active]
        draw = sample(
            logits,
            temperature,
            uniform(self._seed[:active], position),
            adjusted=self._adjust(plan, logits, position),
            min_p=self._min_p[:active] if plan.need & _Need.MIN_P else None,
            top=plan.top,
            greedy_rows=bool(plan.need & _Need.GREEDY),
        )
        if self._count is not None:
            ones = torch.ones(active, 1, dtype=torch.int32, device=self._device)
            self._count[:active].scatter_add_(1, draw.token.unsqueeze(-1), ones)
        return draw, top_tokens(logits, temperature, plan.top_n) if plan.top_n >= 0 else None

    def plain(self, active: int) -> Plain | None:
        """What a draw depends on where no row asks for more than a temperature; None if one does."""
        plan = self._plan_for(active)
        if plan.need & ~_Need.GREEDY or plan.top_n >= 0:
            return None
        return Plain(bool(plan.need & _Need.GREEDY), self._stop.shape[1])

    def draw_plain(self, plain: Plain, logits: Tensor, position: Tensor) -> Draw:
        """`draw` for such rows, with nothing decided on the host; also for more rows than run."""
        rows = len(logits)
        drawn = uniform(self._seed[:rows], position)
        return sample(logits, self._temperature[:rows], drawn, greedy_rows=plain.greedy)

    def stopped(self, active: int, token: Tensor) -> Tensor:
        """Whether `token` `[active]` int64 is one of its row's `stop_token_ids`; `[active]` bool."""
        return (self._stop[:active] == token.unsqueeze(-1)).any(-1)

    def _plan_for(self, active: int) -> _Plan:
        if self._plan is None or self._plan.active != active:
            self._need[active:], self._top_n[active:] = 0, -1
            need = int(np.bitwise_or.reduce(self._need[:active], initial=0))
            self._release(need)
            truncated = np.flatnonzero(self._need[:active] & _Need.TOP_K_TOP_P)
            top = None
            if len(truncated):
                rows = torch.from_numpy(truncated).to(self._device)
                top = TopKTopP(rows, self._top_k[rows], self._top_p[rows], int(self._candidates[truncated].max()))
            self._plan = _Plan(active, need, top, int(self._top_n[:active].max(initial=-1)))
        return self._plan

    def _release(self, need: int) -> None:
        """Gives back the memory of what no row needs any more."""
        if not need & _Need.PENALTIES:
            self._in_prompt = self._count = None
        if not need & _Need.BIAS:
            self._bias_ids, self._bias = self._bias_ids[:, :0].clone(), self._bias[:, :0].clone()

    def _adjust(self, plan: _Plan, logits: Tensor, position: Tensor) -> Tensor | None:
        """Logits after min-tokens mask, bias and penalties; None if no row has any. Other rows stay as they are."""
        if not plan.need & (_Need.MIN_TOKENS | _Need.BIAS | _Need.PENALTIES):
            return None
        rows = slice(plan.active)
        logits = logits.clone()
        if plan.need & _Need.MIN_TOKENS:
            stop = self._stop[rows]
            masked = (stop >= 0) & (position < self._min_tokens[rows]).unsqueeze(-1)
            forbidden = torch.zeros_like(stop, dtype=logits.dtype).masked_fill_(masked, -torch.inf)
            logits.scatter_add_(1, stop.clamp_min(0), forbidden)
        if plan.need & _Need.BIAS:
            logits.scatter_add_(1, self._bias_ids[rows], self._bias[rows])
        if self._count is not None and self._in_prompt is not None:
            penalties = (self._repetition[rows], self._presence[rows], self._frequency[rows])
            logits = penalise(logits, self._in_prompt[rows], self._count[rows], *penalties)
        return logits

    def _count_tokens(self, row: int, prompt: Sequence[int], answer: Sequence[int]) -> None:
        if self._in_prompt is None or self._count is None:
            shape = (len(self._seed), self.vocab_size)
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._count = torch.zeros(shape, dtype=torch.int32, device=self._device)
        for table, ids in ((self._in_prompt, prompt), (self._count, answer)):
            times = np.bincount(np.asarray(ids, np.int64), minlength=self.vocab_size)
            table[row] = torch.from_numpy(times).to(self._device, table.dtype)

    def _row_tensors(self) -> Iterable[Tensor]:
        yield from (self._seed, self._top_k, self._min_tokens, self._temperature, self._top_p, self._min_p)
        yield from (self._repetition, self._presence, self._frequency, self._stop, self._bias_ids, self._bias)
        if self._in_prompt is not None and self._count is not None:
            yield from (self._in_prompt, self._count)


def penalise(
    logits: Tensor, in_prompt: Tensor, count: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """Makes tokens that were there before less likely (or more, as the signs go).

    l' = (l / r if l > 0 else l r) where the prompt or the answer has the token (CTRL, Keskar et al. 2019, arXiv
    1909.05858), then l' - f count - p [count > 0], where count is of the answer alone (the OpenAI API's definition).

    Args:
        logits: `[B, vocab]` fp32.
        in_prompt, count: `[B, vocab]` bool and int32.
        repetition, presence, frequency: `[B]` fp32, the r, p and f; 1, 0 and 0 leave a row as it is, to the bit.
    """
    r, p, f = repetition.unsqueeze(-1), presence.unsqueeze(-1), frequency.unsqueeze(-1)
    in_answer = count > 0
    penalised = torch.where(logits > 0, logits / r, logits * r)
    logits = torch.where(in_prompt | in_answer, penalised, logits)
    return logits - f * count - p * in_answer


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Whether a vocabulary of this size can be sampled so.

    Raises:
        ValueError: a bias or stop token is outside the vocabulary; a bias is NaN or +inf; every token is forbidden.
    """
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    for token, bias in params.logit_bias.items():
        if not bias < float("inf"):
            raise ValueError(f"logit_bias of token {token} is {bias}; needs a finite number, or -inf to forbid it")
    forbidden = {token for token, bias in params.logit_bias.items() if bias == -float("inf")}
    forbidden.update(params.stop_token_ids if params.min_tokens else ())
    if len(forbidden) >= vocab_size:
        raise ValueError("logit_bias, or stop_token_ids with min_tokens, forbid every token of the vocabulary")


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} has token id {token}, outside the vocabulary 0..{vocab_size - 1}")


def _put_lists(table: Tensor, rows: Tensor, lists: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Writes one list into each of `rows`, filled up with `fill`; returns the table, widened if need be."""
    width = max(map(len, lists), default=0)
    if width > table.shape[1]:
        wider = table.new_full((len(table), width), fill)
        wider[:, : table.shape[1]] = table
        table = wider
    values = [[*x, *[fill] * (table.shape[1] - len(x))] for x in lists]
    table[rows] = torch.tensor(values, dtype=table.dtype, device=table.device).view(len(lists), table.shape[1])
    return table
