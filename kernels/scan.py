"""The arithmetic of `chunk.py`, written out without autograd: what is within the chunks, and the scan over them.

M is the number of (chunk, head) pairs, C the chunk size, G the cumulative log decay of a chunk, S the state at its
start. With two rows for each token in one `[2C, K]` matrix, and each key as its chunk sees it and as the state does,

    R = (−β e^G k ; e^G q)      k̄ = e^−G k      k̂ = e^{G_C−G} k
    A = R k̄ᵀ, of which the upper half A_k is kept below its diagonal, the lower half A_q on it too
    v' = (I − A_k)⁻¹ (β v + R_k S)      o = scale (R_q S + A_q v')      S⁺ = Diag(e^{G_C}) S + k̂ᵀ v'
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from deltarl.kernels.gate import inverse_norm
from deltarl.kernels.layout import ChunkLayout
from deltarl.kernels.scores import FarRows, undo_decay


@dataclass(frozen=True)
class Step:
    """The j-th chunk of every sequence that has one, in every head: `count` of the M chunks, from `first` on.

    Of those the first `going_on` have a chunk after this one, in the same order.
    """

    first: int
    count: int
    going_on: int

    def chunks(self, count: int | None = None) -> slice:
        """All of them, or the first `count`."""
        return slice(self.first, self.first + (self.count if count is None else count))

    @classmethod
    def all(cls, layout: ChunkLayout, heads: int) -> list["Step"]:
        steps, first = [], 0
        for active, next_active in pairwise((*layout.active, 0)):
            steps.append(cls(first, active * heads, next_active * heads))
            first += active * heads
        return steps


@dataclass
class Chunks:
    """The inputs in chunks, and what follows from them at little cost.

    Attributes:
        q, k: `[M, C, K]`, divided by their norms if `q_rate`, `k_rate` `[M, C, 1]` are given: one over the norms.
        v: `[M, C, V]`.  beta: `[M, C, 1]`.  decay: `[M, C, K]`, e^G.  cumulative: G; may be None if no row is far.
        rows: `[M, 2C, K]`, R.  k_out, k_end: `[M, C, K]`, k̄ and k̂.  far: the rows for which k̄ is no use.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    q_rate: Tensor | None
    k_rate: Tensor | None
    decay: Tensor
    cumulative: Tensor | None
    rows: Tensor = field(init=False)
    k_out: Tensor = field(init=False)
    k_end: Tensor = field(init=False)
    far: FarRows | None = field(init=False)

    def __post_init__(self) -> None:
        q, k, decay, size = self.q, self.k, self.decay, self.k.shape[1]
        factor = -self.beta
        self.rows = torch.empty(len(k), 2 * size, k.shape[2], dtype=k.dtype, device=k.device)
        torch.mul(k, decay, out=self.rows[:, :size]).mul_(factor)
        torch.mul(q, decay, out=self.rows[:, size:])
        self.far = None if self.cumulative is None else FarRows.find(q, k, factor, self.cumulative)
        self.k_out = undo_decay(k, decay, clip=self.far is not None)
        self.k_end = self.k_out * decay[:, -1:]
        if self.far:
            self.k_end[self.far.chunks] = self.far.state_keys()

    @classmethod
    def build(cls, tensors: Sequence[Tensor], layout: ChunkLayout, dtype: torch.dtype, normalise: bool) -> "Chunks":
        """From q, k, v, g `[T, H, ·]` and beta `[T, H]`, in `dtype`."""
        q, k, v, g = (layout.gather(x, dtype) for x in tensors[:4])
        beta = layout.gather(tensors[4].unsqueeze(-1), dtype)
        q_rate, k_rate = (inverse_norm(q), inverse_norm(k)) if normalise else (None, None)
        if q_rate is not None and k_rate is not None:
            q, k = q.mul_(q_rate), k.mul_(k_rate)
        cumulative = g.cumsum_(1)
        return cls(q, k, v, beta, q_rate, k_rate, cumulative.exp(), cumulative)

    def inputs(self) -> tuple[Tensor | None, ...]:
        """What to keep: the same can be made of it again."""
        cumulative = self.cumulative if self.far else None
        return self.q, self.k, self.v, self.beta, self.q_rate, self.k_rate, self.decay, cumulative


@dataclass
class Scan:
    """What the scan goes by and leaves behind.

    Attributes:
        scores: `[M, 2C, C]`, A.  inverse: `[M, C, C]`, (I − A_k)⁻¹.  v_new: `[M, C, V]`, v'.
        states: `[·, K, V]` before the first step, None for zeros; then after each, of the chunks that go on at least.
    """

    scores: Tensor
    inverse: Tensor
    v_new: Tensor
    states: list[Tensor | None]

    @classmethod
    def prepare(cls, x: Chunks, state: Tensor | None) -> "Scan":
        scores = torch.bmm(x.rows, x.k_out.transpose(1, 2))
        if x.far:
            x.far.replace_scores(scores)
        keep_causal_(scores)
        size = scores.shape[2]
        eye = torch.eye(size, dtype=scores.dtype, device=scores.device).expand(len(scores), -1, -1)
        inverse = torch.linalg.solve_triangular(-scores[:, :size], eye, upper=False, unitriangular=True)
        return cls(scores, inverse, torch.empty_like(x.v), [state])

    def advance(
        self, x: Chunks, steps: Sequence[Step], scale: float, out: Tensor, all_states: bool
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Goes through the steps, filling in `out` `[M, C, V]` and `v_new`; yields the states before and after each.

        Args:
            all_states: yield the states after a step of all its chunks, not only of those going on.
        """
        size, state = self.inverse.shape[1], self.states[0]
        for step in steps:
            here, kept = step.chunks(), step.chunks(step.count if all_states else step.going_on)
            v, beta, inverse, attend = x.v[here], x.beta[here], self.inverse[here], self.scores[here, size:]
            v_new, keys = self.v_new[here], x.k_end[kept].transpose(1, 2)
            if state is None:
                torch.bmm(inverse, v * beta, out=v_new)
                torch.bmm(attend, v_new, out=out[here]).mul_(scale)
                after = torch.bmm(keys, self.v_new[kept])
            else:
                state = state[: step.count]
                read = torch.bmm(x.rows[here], state)
                torch.bmm(inverse, read[:, :size].addcmul_(v, beta), out=v_new)
                torch.baddbmm(read[:, size:], attend, v_new, beta=scale, alpha=scale, out=out[here])
                after = state[: len(keys)] * x.decay[kept, -1].unsqueeze(-1)
                after.baddbmm_(keys, self.v_new[kept])
            yield state, after
            state = after


def keep_causal_(scores: Tensor) -> None:
    """Zeros what a row of `[M, 2C, C]` must not see. Those of the upper half see the tokens before them only."""
    size = scores.shape[2]
    scores[:, :size].tril_(-1)
    scores[:, size:].tril_()
