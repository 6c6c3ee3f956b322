"""KDA one token at a time, as one more row of the chunk the learner will compute.

A plain recurrent step and the chunkwise form round differently, and the difference grows with the state's history.
So decode keeps the state at the last chunk boundary and the rows since (k, G, v'), computes the new token as the next
row of `chunk.py`'s equations, and folds the rows into the state once per chunk. It also writes the state once per chunk
instead of once per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deltarl.kernels.chunk import CHUNK_SIZE, ChunkBuffer
from deltarl.kernels.precision import core_dtype
from deltarl.kernels.scores import is_far, pair_scores, undo_decay


@dataclass
class DecodeState:
    """State of B sequences in decode; updated in place.

    state: `[B, H, K, V]` at the last chunk boundary, in `core_dtype` like the rest.
    k, cumulative, k_scaled: `[B, H, C, K]` keys since then, their G, and `k exp(-G)`.  v_new: `[B, H, C, V]`.
    Rows at and beyond a sequence's current offset hold leftovers that are never read.
    """

    state: Tensor
    k: Tensor
    cumulative: Tensor
    k_scaled: Tensor
    v_new: Tensor

    @classmethod
    def empty(cls, batch: int, heads: int, key_dim: int, value_dim: int, device: torch.device) -> "DecodeState":
        dtype = core_dtype(device, torch.float32)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, heads, *shape, dtype=dtype, device=device)

        rows = (CHUNK_SIZE, key_dim)
        return cls(zeros(key_dim, value_dim), zeros(*rows), zeros(*rows), zeros(*rows), zeros(CHUNK_SIZE, value_dim))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.state, self.k, self.cumulative, self.k_scaled, self.v_new

    def __getitem__(self, rows: slice) -> "DecodeState":
        """A view of some rows."""
        return DecodeState(*(x[rows] for x in self.tensors()))

    def load(self, rows: Tensor, buffer: ChunkBuffer) -> None:
        """Takes over what a prefill left: sequence i of `buffer` goes to row `rows[i]`."""
        self.state[rows] = buffer.state
        self.k[rows] = buffer.k
        self.cumulative[rows] = buffer.cumulative
        self.k_scaled[rows] = undo_decay(buffer.k, buffer.cumulative.exp())
        self.v_new[rows] = buffer.v_new


def decode_kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, cache: DecodeState, offset: Tensor
) -> Tensor:
    """Output `[B, H, V]` for the next token of each sequence; advances `cache` in place. No gradient.

    Args:
        q, k: `[B, H, K]`, already normalised.  v: `[B, H, V]`.  g: `[B, H, K]` log decay.  beta: `[B, H]`.
        offset: `[B]` tokens of each sequence since its last chunk boundary, 0..C-1.
    """
    batch = torch.arange(len(offset), device=offset.device)
    column = torch.arange(CHUNK_SIZE, device=offset.device)
    beta = beta.unsqueeze(-1)
    previous = cache.cumulative[batch, :, offset - 1].masked_fill_((offset == 0).view(-1, 1, 1), 0.0)
    cumulative = previous.add_(g)
    cache.k[batch, :, offset] = k
    cache.cumulative[batch, :, offset] = cumulative
    cache.k_scaled[batch, :, offset] = undo_decay(k, cumulative.exp())

    decay = cumulative.exp()
    rows = torch.stack([k * decay, q * scale * decay], 2)
    scores = rows @ cache.k_scaled.transpose(-1, -2)
    far = is_far(cumulative)
    if far.any():
        index = far.nonzero(as_tuple=True)
        raw = torch.stack([k, q * scale], 2)[index]
        seen = (column <= offset[index[0], None]).unsqueeze(-1)
        gap = cumulative[index].unsqueeze(-2) - cache.cumulative[index]
        scores[index] = pair_scores(raw, gap.masked_fill_(~seen, float("-inf")).exp_(), cache.k[index])

    past = (column < offset[:, None]).view(-1, 1, 1, CHUNK_SIZE)
    attend = scores.masked_fill_(~past, 0.0) @ cache.v_new
    read = rows @ cache.state
    v_new = beta * (v - read[:, :, 0]) - beta * attend[:, :, 0]
    cache.v_new[batch, :, offset] = v_new
    self_score = (q * scale * k).sum(-1, keepdim=True)
    out = read[:, :, 1] + (attend[:, :, 1] + self_score * v_new)

    full = (offset == CHUNK_SIZE - 1).nonzero().squeeze(1)
    if len(full):
        _fold(cache, full)
    return out


def _fold(cache: DecodeState, rows: Tensor) -> None:
    """Folds a full chunk into the state of `rows`: `S ← Diag(e^{G_C}) S + (e^{G_C−G} k)ᵀ v'`."""
    cumulative = cache.cumulative[rows]
    end = cumulative[:, :, -1:]
    k_end = (cache.k[rows] * (end - cumulative).exp()).transpose(-1, -2)
    cache.state[rows] = torch.addcmul(k_end @ cache.v_new[rows], end.exp().transpose(-1, -2), cache.state[rows])
