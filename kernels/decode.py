"""KDA one token at a time, as one more row of the chunk the learner will compute.

A plain recurrent step and the chunkwise form round differently, and the difference grows with the state's history.
So decode keeps the state at the last chunk boundary and the rows since (k, G, v'), computes the new token as the next
row of `scan.py`'s equations, and folds the rows into the state once per chunk. It also writes the state once per chunk
instead of once per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deltarl.kernels.chunk import CHUNK_SIZE, ChunkBuffer
from deltarl.kernels.gate import inverse_norm
from deltarl.kernels.precision import core_dtype
from deltarl.kernels.scores import factor_limit, is_far, pair_scores, redo_decay, undo_decay


@dataclass
class DecodeState:
    """State of B sequences in decode, in `core_dtype`; updated in place.

    state: `[B, H, K, V]` at the last chunk boundary.  v_new: `[B, H, C, V]`, the rows of v' since.
    k, cumulative: `[B, H, C, K]` keys since then with their decay undone (k̄ of `scan.py`), and their G.
    total: `[B, H, K]`, the last G.
    From a sequence's current offset on, k is zero and the other rows hold leftovers that do not count.
    """

    state: Tensor
    v_new: Tensor
    k: Tensor
    cumulative: Tensor
    total: Tensor

    @classmethod
    def empty(cls, batch: int, heads: int, key_dim: int, value_dim: int, device: torch.device) -> "DecodeState":
        dtype = core_dtype(device, torch.float32)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, heads, *shape, dtype=dtype, device=device)

        v_new, k = zeros(CHUNK_SIZE, value_dim), zeros(CHUNK_SIZE, key_dim)
        return cls(zeros(key_dim, value_dim), v_new, k, torch.zeros_like(k), zeros(key_dim))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.state, self.v_new, self.k, self.cumulative, self.total

    def __getitem__(self, rows: slice) -> "DecodeState":
        """A view of some rows."""
        return DecodeState(*(x[rows] for x in self.tensors()))

    def load(self, rows: Tensor, buffer: ChunkBuffer) -> None:
        """Takes over what a prefill left: sequence i of `buffer` goes to row `rows[i]`."""
        begun = (buffer.length > 0).view(-1, 1, 1, 1)  # otherwise the rows are those of the chunk before
        self.state[rows], self.v_new[rows], self.cumulative[rows] = buffer.state, buffer.v_new, buffer.cumulative
        self.k[rows] = undo_decay(buffer.k * begun, buffer.cumulative.exp())
        self.total[rows] = (buffer.cumulative * begun)[:, :, -1]

    def fold(self, rows: Tensor, any_far: bool) -> None:
        """Folds a full chunk into the state of `rows`: `S ← Diag(e^{G_C}) S + (e^{G_C−G} k)ᵀ v'`."""
        full = (x.index_select(0, rows).flatten(0, 1) for x in (self.state, self.v_new, self.k, self.total))
        state, v_new, k, end = full
        decay = end.exp().unsqueeze(-1)
        if any_far:
            cumulative = self.cumulative.index_select(0, rows).flatten(0, 1)
            k = redo_decay(k, cumulative.exp()) * (end.unsqueeze(1) - cumulative).exp_()
            state.mul_(decay).baddbmm_(k.transpose(1, 2), v_new)
        else:
            state.baddbmm_(k.transpose(1, 2), v_new).mul_(decay)
        self.state.index_copy_(0, rows, state.unflatten(0, (len(rows), -1)))
        self.k.index_fill_(0, rows, 0.0)
        self.total.index_fill_(0, rows, 0.0)


def decode_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    cache: DecodeState,
    offset: Tensor,
    use_qk_l2norm: bool = False,
) -> Tensor:
    """Output `[B, H, V]`, in v's dtype, for the next token of each sequence; advances `cache` in place. No gradient.

    Args:
        q, k: `[B, H, K]`.  v: `[B, H, V]`.  g: `[B, H, K]` log decay.  beta: `[B, H]`.
        offset: `[B]` tokens of each sequence since its last chunk boundary, 0..C-1.
        use_qk_l2norm: normalise q and k first.
    """
    batch, heads, _ = k.shape
    dtype = cache.state.dtype
    pair = torch.stack([k, q], 2).to(dtype)
    if use_qk_l2norm:
        pair.mul_(inverse_norm(pair))
    k, beta = pair[:, :, 0], beta.to(dtype).unsqueeze(-1)
    factor = pair.new_full((batch, heads, 2, 1), scale)
    torch.neg(beta, out=factor[:, :, 0])
    raw = pair * factor  # −β k over scale q
    total = cache.total.add_(g)
    decay = total.exp()
    any_far = bool((total < -factor_limit(dtype)).any())

    # R of `scan.py` for this token, and its scores A with the rows before it. With itself a key has none yet: `cache.k`
    # is zero at the offset.
    rows = (raw * decay.unsqueeze(2)).flatten(0, 1)
    scores = torch.bmm(rows, cache.k.flatten(0, 1).transpose(1, 2))
    if any_far:
        far = is_far(total)
        sequence, head = far.nonzero(as_tuple=True)
        past = torch.arange(CHUNK_SIZE, device=offset.device) < offset[sequence, None]
        gap = total[sequence, head].unsqueeze(1) - cache.cumulative[sequence, head]
        weight = gap.masked_fill_(~past.unsqueeze(-1), float("-inf")).exp_()
        keys = redo_decay(cache.k[sequence, head], cache.cumulative[sequence, head].exp())
        scores[far.flatten()] = pair_scores(raw[sequence, head], weight, keys)
    read = torch.bmm(rows, cache.state.flatten(0, 1)).baddbmm_(scores, cache.v_new.flatten(0, 1))
    read = read.unflatten(0, (batch, heads))
    v_new = torch.addcmul(read[:, :, 0], v.to(dtype), beta)
    out = torch.addcmul(read[:, :, 1], (raw[:, :, 1] * k).sum(-1, keepdim=True), v_new)

    sequence = torch.arange(batch, device=offset.device)
    cache.k[sequence, :, offset] = undo_decay(k, decay, any_far)
    cache.cumulative[sequence, :, offset] = total
    cache.v_new[sequence, :, offset] = v_new
    full = (offset == CHUNK_SIZE - 1).nonzero().squeeze(1)
    if len(full):
        cache.fold(full, any_far)
    return out.to(v.dtype)
