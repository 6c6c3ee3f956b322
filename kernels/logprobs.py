"""Log-probability of given tokens and entropy, from hidden states and output matrix, without the table of logits.

With `z_j = hidden · w_j / τ`, the vocabulary is walked over in blocks. Of what went before, a row keeps

    m = max_j z_j      s = Σ_j e^{z_j − m}      e = Σ_j e^{z_j − m} (z_j − m)      z_t of its token t

and a block B with a maximum that makes it m', with r = e^{m − m'}, changes that to

    s' = r s + Σ_B e^{z_j − m'}      e' = r (e + s (m − m')) + Σ_B e^{z_j − m'} (z_j − m')

In the end, with `log p_j = z_j − m − log s`,

    logprob = z_t − m − log s      H = −Σ_j p_j log p_j = log s − e / s

From `∂log p_t/∂z_j = 1[j=t] − p_j` and `∂H/∂z_j = −p_j (log p_j + H)`, with the incoming gradients a of the
log-probability and b of the entropy,

    d_j = ∂/∂logit_j = (a (1[j=t] − p_j) − b p_j (log p_j + H)) / τ
    dhidden = Σ_j d_j w_j      dw_j = Σ_rows d_j hidden

The backward pass computes each block of logits again and overwrites it with d. m and log s are kept apart because their
sum would lose, where logits are large, the digits of log s.

On a CPU a whole row of logits is one block, up to WHOLE_VOCAB entries, and goes through `torch.log_softmax`: the very
operations of `rollout/sampler.py`, so that the learner arrives at the sampler's numbers to the bit. A table that is no
larger than a block is simply kept for the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltarl.kernels.backend import use_triton
from deltarl.kernels.precision import MIN_ROWS

BACKENDS = ("torch", "triton")

# Logits in a block, rows × vocabulary entries, are fewer than twice this; a handful of such tensors exist at a time.
ENTRIES = {"torch": 1 << 22, "triton": 1 << 25}
VOCAB_BLOCK = 1 << 13
WHOLE_VOCAB = ENTRIES["torch"] // MIN_ROWS


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    blocks: tuple[int, int] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of one token per row, and the entropy there, under `softmax(hidden · weightᵀ / temperature)`.

    Gradients flow through both results into `hidden` and `weight`. Besides the results and the gradients (that of
    `hidden` is summed up in fp32), memory is bounded whatever n and the vocabulary: a few blocks of 2 · `ENTRIES`
    logits, and in the backward pass of 16-bit inputs two times `VOCAB_BLOCK` rows of `[D]` in fp32.

    Args:
        hidden: `[n, D]`.  weight: `[vocab, D]`, of the same dtype; logits are rounded to it, as by `nn.Linear`.
        target: `[n]` int64 token ids. On a GPU, where a check would wait for the device, an id outside the vocabulary
            gives a log-probability of NaN.
        temperature: above 0.
        blocks: (rows, vocabulary entries) of a block, chosen by backend if None.
        backend: "torch", or "triton" (not for fp64), which is what None takes on a GPU.

    Returns:
        Log-probabilities and entropies, `[n]` fp32 (fp64 for fp64 inputs). On a GPU those of a row do not depend on the
        other rows, except as far as the matrix product chosen for their number rounds differently.

    Raises:
        ValueError: shapes or dtypes that do not fit, a temperature that is not above 0, an unknown backend, or, on a
            CPU, token ids outside the vocabulary.
    """
    if backend is None:
        backend = "triton" if use_triton(hidden.device, hidden.dtype) else "torch"
    _check(hidden, weight, target, temperature, backend)
    if blocks is None and backend == "torch" and len(hidden) * len(weight) <= ENTRIES[backend]:
        return _chosen_and_entropy(_table(hidden, weight, temperature)[1], target)
    return _TokenLogprobs.apply(hidden, weight, target, float(temperature), blocks, backend)


def log_softmax(z: Tensor) -> Tensor:
    """Log-probabilities `[n, vocab]` under `softmax(z)`: for the sampler, the very numbers of a learner.

    A row's do not depend on the other rows, nor on where in memory it begins, unlike those of `torch.log_softmax` on a
    GPU where the vocabulary is no multiple of 4.

    Args:
        z: `[n, vocab]` fp32, logits divided by the temperature, those that the learner's products give.
    """
    if not use_triton(z.device, z.dtype):
        return torch.log_softmax(z, -1)
    columns = [slice(start, min(start + VOCAB_BLOCK, z.shape[1])) for start in range(0, z.shape[1], VOCAB_BLOCK)]
    unused = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    # Blocks of the strides that `F.linear` gives them: the order in which a kernel adds can depend on it.
    _, _, peak, log_sum = _online(lambda c: z[:, c].contiguous(), unused, 1.0, columns, "triton").unsqueeze(-1)
    return (z - peak).sub_(log_sum)


def _check(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    fit = hidden.ndim == weight.ndim == 2 and hidden.shape[1] == weight.shape[1] and target.shape == hidden.shape[:1]
    if not fit or not len(weight):
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, target {tuple(target.shape)}"
        raise ValueError(f"log-probabilities take hidden [n,D], weight [vocab,D], target [n]; got {shapes}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point() or target.dtype != torch.int64:
        dtypes = f"{hidden.dtype}, {weight.dtype}, {target.dtype}"
        raise ValueError(f"hidden and weight need the same float dtype, target int64; got {dtypes}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if target.device.type == "cpu" and len(target) and not 0 <= int(target.min()) <= int(target.max()) < len(weight):
        raise ValueError(f"target has token ids outside the vocabulary 0..{len(weight) - 1}")


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        temperature: float,
        blocks: tuple[int, int] | None,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.options = temperature, blocks, backend
        rows, columns = _spans(hidden, weight, blocks, backend, VOCAB_BLOCK if backend == "triton" else WHOLE_VOCAB)
        if len(columns) == 1 and backend == "torch":
            parts = [_whole_rows(hidden[r], weight, target[r], temperature) for r in rows]
        else:
            parts = [_online(_logits(hidden[r], weight), target[r], temperature, columns, backend) for r in rows]
        logprobs, entropy, peak, log_sum = torch.cat(parts, 1)
        ctx.save_for_backward(hidden, weight, target, torch.stack([peak, log_sum, entropy]))
        return logprobs.clone(), entropy.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, kept = ctx.saved_tensors
        temperature, blocks, backend = ctx.options
        per_row = torch.cat([kept, torch.stack(grads) / temperature])
        to_gradient = _to_gradient if backend == "torch" else _triton("to_gradient")
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        dhidden = torch.zeros_like(hidden, dtype=kept.dtype) if need_hidden else None
        dweight = torch.zeros_like(weight) if need_weight else None
        rows, columns = _spans(hidden, weight, blocks, backend, VOCAB_BLOCK)
        for c in columns:
            part = weight[c]
            dpart = None if dweight is None else dweight[c].to(kept.dtype)  # the slice itself, if already in it
            for r in rows:
                d = F.linear(hidden[r], part)
                to_gradient(d, target[r] - c.start, per_row[:, r], temperature)
                if dhidden is not None:
                    _add_product(dhidden[r], d, part)
                if dpart is not None:
                    _add_product(dpart, d.T, hidden[r])
            if dweight is not None and dpart is not None:
                dweight[c] = dpart
        return None if dhidden is None else dhidden.to(hidden.dtype), dweight, None, None, None, None


def _spans(
    hidden: Tensor, weight: Tensor, blocks: tuple[int, int] | None, backend: str, vocab_block: int
) -> tuple[list[slice], list[slice]]:
    """Blocks of rows, nearly equal and of at least `MIN_ROWS` rows if there are as many, and of the vocabulary."""
    n, vocab = len(hidden), len(weight)
    width = min(vocab, blocks[1] if blocks else vocab_block)
    height = blocks[0] if blocks else max(MIN_ROWS, ENTRIES[backend] // max(width, VOCAB_BLOCK))
    count = max(1, n // height)
    rows = [slice(n * i // count, n * (i + 1) // count) for i in range(count)]
    return rows, [slice(start, min(start + width, vocab)) for start in range(0, vocab, width)]


def _logits(hidden: Tensor, weight: Tensor) -> Callable[[slice], Tensor]:
    def block(columns: slice) -> Tensor:
        logits = F.linear(hidden, weight[columns])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    return block


def _table(hidden: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """z and log p `[R, vocab]`, as the sampler computes them; differentiable."""
    filled = F.pad(hidden, (0, 0, 0, max(0, MIN_ROWS - len(hidden))))
    logits = F.linear(filled, weight)[: len(hidden)]
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return z, torch.log_softmax(z, -1)


def _chosen_and_entropy(table: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return table.gather(1, target.unsqueeze(1)).squeeze(1), -(table.exp() * table).sum(-1)


def _whole_rows(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Log-probability, entropy, m and log s, `[4, R]`."""
    z, table = _table(hidden, weight, temperature)
    return torch.stack([*_chosen_and_entropy(table, target), z.amax(-1), -table.amax(-1)])


def _online(
    block: Callable[[slice], Tensor], target: Tensor, temperature: float, columns: list[slice], backend: str
) -> Tensor:
    """The same, a block of the vocabulary at a time: `block` gives the logits `[R, C]` of some columns, in fp32."""
    add_block = _add_block if backend == "torch" else _triton("add_block")
    stats: Tensor | None = None
    for c in columns:
        logits = block(c)
        if stats is None:
            stats = logits.new_zeros(4, len(logits))
            stats[0] = torch.finfo(stats.dtype).min  # not -inf: 0 · (m − m') must be 0
            stats[3] = float("nan")
        add_block(stats, logits, target - c.start, temperature)
    assert stats is not None  # no vocabulary is empty
    peak, total, weighted, chosen = stats
    log_sum = total.log()
    return torch.stack([chosen - peak - log_sum, log_sum - weighted / total, peak, log_sum])


def _triton(name: str) -> Callable[..., None]:
    """`_add_block` or `_to_gradient` as a fused kernel. Imported late: there is not a Triton for every CPU."""
    from deltarl.kernels.gpu import logprobs

    return getattr(logprobs, name)


def _add_block(stats: Tensor, logits: Tensor, target: Tensor, temperature: float) -> None:
    """Takes a block of logits into the statistics of its rows.

    Args:
        stats: `[4, R]` m, s, e and z_t of the blocks before; updated in place.
        logits: `[R, C]`.  target: `[R]` tokens, counted from the first of the block.
    """
    peak, total, weighted, chosen = stats
    z = logits.to(stats.dtype) / temperature
    here = z.gather(1, target.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
    top = torch.maximum(peak, z.amax(-1))
    shift = peak - top
    z.sub_(top.unsqueeze(1))
    p = z.exp()
    ratio = shift.exp()
    weighted.copy_(ratio * (weighted + total * shift) + (p * z).sum(-1))
    total.copy_(ratio * total + p.sum(-1))
    chosen.copy_(torch.where(_within(target, z), here, chosen))
    peak.copy_(top)


def _to_gradient(logits: Tensor, target: Tensor, per_row: Tensor, temperature: float) -> None:
    """Overwrites a block of logits with d.

    Args:
        logits: `[R, C]`.  target: `[R]` tokens, counted from the first of the block.
        per_row: `[5, R]` m, log s, H, a / τ and b / τ.
    """
    peak, log_sum, entropy, a, b = per_row.unsqueeze(-1)
    logp = (logits.to(per_row.dtype) / temperature).sub_(peak).sub_(log_sum)
    p = logp.exp()
    d = logp.add_(entropy).mul_(b).add_(a).mul_(p).neg_()
    hit = torch.where(_within(target, logits).unsqueeze(1), a, 0.0)
    logits.copy_(d.scatter_add_(1, target.clamp(0, logits.shape[1] - 1).unsqueeze(1), hit))


def _within(target: Tensor, logits: Tensor) -> Tensor:
    return (target >= 0) & (target < logits.shape[1])


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a b`; on a GPU the product of 16-bit operands is not rounded before."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b
