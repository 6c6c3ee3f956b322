"""Gradients of `scan.py`, in its notation. Given do and dS⁺, going back, with D = (db ; scale do):

dv' = A_qᵀ D_q + k̂ dS⁺     db = (I − A_k)⁻ᵀ dv'     dS = Diag(e^{G_C}) dS⁺ + Rᵀ D     dk̂ = v' dS⁺ᵀ
dR = D Sᵀ + dA k̄           dk̄ = dAᵀ R               dA = D v'ᵀ, of which is kept what is kept of A
dv = β db                   dβ = db·v − k·e^G dR_k
dq = e^G dR_q               dk = −β e^G dR_k + c     c = e^−G dk̄ + e^{G_C−G} dk̂
dG = q·dq − k·(β e^G dR_k + c), in the last row of a chunk also Σ_v S⁺ dS⁺;  dg is the sum of dG over the rows after
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deltarl.kernels.scan import Chunks, Scan, Step, keep_causal_
from deltarl.kernels.scores import undo_decay


def scan_gradients(
    x: Chunks, scan: Scan, steps: Sequence[Step], d_reads: Tensor, d_state: Tensor, has_final: bool
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, g and beta, `[M, C, ·]`.

    Args:
        scan: with the states after each step.
        d_reads: `[M, 2C, V]`, D. The upper half need not be filled in.
        d_state: `[·, K, V]`, gradients of the last states, those of the first step's chunks first; become gradients of
            the states before it, unless these are zeros.
        has_final: whether any of `d_state` is not zero.
    """
    d_rows, d_k_end, d_end = _back_through_steps(x, scan, steps, d_reads, d_state, has_final)
    d_scores = torch.bmm(d_reads, scan.v_new.transpose(1, 2))
    keep_causal_(d_scores)
    far = x.far.take_gradients(d_scores, d_k_end) if x.far else None
    d_rows.baddbmm_(d_scores, x.k_out)
    d_rows.unflatten(1, (2, -1)).mul_(x.decay.unsqueeze(1))
    d_column = torch.bmm(d_scores.transpose(1, 2), x.rows).addcmul_(d_k_end, x.decay[:, -1:])
    d_column = undo_decay(d_column, x.decay, clip=far is not None)
    if far:
        d_rows += far[0]
        d_column += far[1]
    return _input_gradients(x, d_reads, d_rows, d_column, d_end)


def _back_through_steps(
    x: Chunks, scan: Scan, steps: Sequence[Step], d_reads: Tensor, d_state: Tensor, has_final: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Fills in `d_reads` and `d_state`; returns D Sᵀ, dk̂, and `Σ_v S⁺ dS⁺` `[M, K]`."""
    size = x.k.shape[1]
    d_rows, d_k_end, d_end = torch.empty_like(x.rows), torch.zeros_like(x.k), torch.zeros_like(x.k[:, 0])
    for step, before, after in reversed(list(zip(steps, scan.states[:-1], scan.states[1:], strict=True))):
        here, count = step.chunks(), step.count if has_final else step.going_on
        kept, d_after = step.chunks(count), d_state[:count]
        d_v_new = torch.bmm(scan.scores[here, size:].transpose(1, 2), d_reads[here, size:])
        if count:
            assert after is not None  # only the first may be
            d_v_new[:count].baddbmm_(x.k_end[kept], d_after)
            torch.bmm(scan.v_new[kept], d_after.transpose(1, 2), out=d_k_end[kept])
            torch.sum(after[:count] * d_after, -1, out=d_end[kept])
        d_reads[here, :size] = torch.bmm(scan.inverse[here].transpose(1, 2), d_v_new)
        if before is None:
            d_rows[here] = 0.0
        else:
            torch.bmm(d_reads[here], before[: step.count].transpose(1, 2), out=d_rows[here])
            d_after.mul_(x.decay[kept, -1].unsqueeze(-1))
            d_state[: step.count].baddbmm_(x.rows[here].transpose(1, 2), d_reads[here])
    return d_rows, d_k_end, d_end


def _input_gradients(x: Chunks, d_reads: Tensor, d_rows: Tensor, d_column: Tensor, d_end: Tensor) -> tuple[Tensor, ...]:
    """The last three lines of the equations, from D, e^G dR, c and `Σ_v S⁺ dS⁺`; overwrites the middle two."""
    size = x.k.shape[1]
    d_write, d_row, d_q = d_reads[:, :size], d_rows[:, :size], d_rows[:, size:]
    d_g = x.q * d_q
    q_dot = d_g.sum(-1, keepdim=True)
    product = x.k * d_row
    row_dot = product.sum(-1, keepdim=True)
    d_g.addcmul_(product, x.beta, value=-1)
    d_g.sub_(torch.mul(x.k, d_column, out=product))
    d_g[:, -1] += d_end
    for i in range(size - 1, 0, -1):
        d_g[:, i - 1] += d_g[:, i]

    d_k = d_column.addcmul_(d_row, x.beta, value=-1)
    if x.q_rate is not None and x.k_rate is not None:
        k_dot = product.sum(-1, keepdim=True).addcmul_(row_dot, x.beta, value=-1)
        d_q.addcmul_(x.q, q_dot, value=-1).mul_(x.q_rate)
        d_k.addcmul_(x.k, k_dot, value=-1).mul_(x.k_rate)
    d_beta = (d_write * x.v).sum(-1, keepdim=True).sub_(row_dot)
    return d_q, d_k, d_write * x.beta, d_g, d_beta
