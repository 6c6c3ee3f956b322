"""What `kernels.py` measures: shapes, random inputs, an fp64 reference, and the least bytes and operations."""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltarl.kernels.gate import l2norm, log_decay
from deltarl.kernels.recurrent import recurrent_kda

CHECKED_HEADS = 4  # of a checked output; heads do not depend on each other
CHECK_LENGTHS = (300, 17, 195)  # packed sequences of the correctness check
MIXED = (1300, 547, 2048, 963, 271, 3063)
CONV_WIDTH = 4
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Workload:
    """A batch of sequences for one KDA layer. `lengths`: of packed sequences, then batch is 1 and length their sum."""

    name: str
    batch: int
    length: int
    heads: int
    lower_bound: float | None = None  # None: the softplus gate of Kimi-Linear-48B
    lengths: tuple[int, ...] = ()
    dim: int = 128

    @property
    def token_heads(self) -> int:
        return self.batch * self.length * self.heads


TRAIN = (Workload("B8 T4096 H32 softplus", 8, 4096, 32), Workload("B8 T4096 H32 safe", 8, 4096, 32, -5.0))
PREFILL = tuple(
    Workload(f"T8192 H{heads} safe {name}", 1, 8192, heads, -5.0, lengths)
    for heads in (96, 64)
    for name, lengths in (("fixed", ()), ("mixed", MIXED), ("1024x8", (1024,) * 8))
)
BATCHES = (1, 8, 32, 128, 256, 512, 1024)


@dataclass
class Inputs:
    """Inputs of one KDA call.

    raw: as a layer has them (q, k not normalised, g before the gate, beta logits); else the core's own: q, k normalised
        (rounded to bf16), g natural log decay in fp32, beta in fp32 after the sigmoid, A_log and dt_bias None.
    q, k, v, g: `[B, T, H, D]`.  beta: `[B, T, H]`.  A_log: `[H]` fp32.  dt_bias: `[H*D]` fp32.
    cu_seqlens: `[N+1]` int32 bounds of packed sequences, or None.  extra: what an adapter prepares beforehand.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    A_log: Tensor | None
    dt_bias: Tensor | None
    lower_bound: float | None
    cu_seqlens: Tensor | None
    raw: bool
    extra: dict[str, Any]

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that have gradients."""
        names = ("q", "k", "v", "g", "beta", "A_log", "dt_bias")
        return {name: x for name in names if (x := getattr(self, name)) is not None}

    def with_grad(self) -> "Inputs":
        return replace(self, **{name: x.detach().requires_grad_() for name, x in self.leaves().items()}, extra={})


def make_inputs(w: Workload, device: torch.device, raw: bool = True, seed: int = 0) -> Inputs:
    """Random inputs with the statistics of a layer: q, k, v after SiLU, gates as initialised by fla's layer.

    The softplus gate gets `A = U(1, 16)` and `dt = exp(U(ln 1e-3, ln 1e-1))` on a pre-activation of N(0, 1). The safe
    gate gets A = 1 and a bias of N(0, 1/4), so a mean log decay of -2.5: the "production gate" that the peers' own
    figures were taken at.
    """
    gen = torch.Generator(device).manual_seed(seed)
    shape = (w.batch, w.length, w.heads, w.dim)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=gen, device=device, dtype=torch.bfloat16)

    q, k, v = (F.silu(normal(*shape)) for _ in range(3))
    g, beta = normal(*shape), normal(*shape[:3])
    uniform = torch.rand(w.heads + w.heads * w.dim, generator=gen, device=device)
    if w.lower_bound is None:
        a_log = (1 + 15 * uniform[: w.heads]).log()
        dt = (uniform[w.heads :] * 4.605 - 6.908).exp()
        dt_bias = dt + (-torch.expm1(-dt)).log()
    else:
        a_log = torch.zeros(w.heads, device=device)
        dt_bias = torch.randn(w.heads * w.dim, generator=gen, device=device) / 2
    cu_seqlens = None
    if w.lengths:
        cu_seqlens = torch.tensor([0, *accumulate(w.lengths)], dtype=torch.int32, device=device)
    x = Inputs(q, k, v, g, beta, a_log, dt_bias, w.lower_bound, cu_seqlens, True, {})
    return x if raw else core_inputs(x)


def core_inputs(x: Inputs) -> Inputs:
    """What remains for the core when normalisation, gate and sigmoid are done by somebody else."""
    assert x.A_log is not None
    assert x.dt_bias is not None
    g = torch.cat([log_decay(part, x.A_log, x.dt_bias, x.lower_bound) for part in x.g.split(1024, dim=1)], dim=1)
    q, k = (l2norm(y.float()).to(y.dtype) for y in (x.q, x.k))
    return replace(x, q=q, k=k, g=g, beta=x.beta.float().sigmoid(), A_log=None, dt_bias=None, raw=False, extra={})


def check_workload(w: Workload) -> Workload:
    """The small problem that the peers' results on `w` are checked on: the same heads, gate and packing or batching."""
    lengths = CHECK_LENGTHS if w.lengths else ()
    return replace(w, batch=1, length=sum(CHECK_LENGTHS), lengths=lengths)


def reference(x: Inputs, d_out: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Output `[B, T, heads, D]` of the first `CHECKED_HEADS` heads and, given `d_out`, their gradients; in fp64."""
    heads = slice(0, CHECKED_HEADS)
    dim = x.q.shape[-1]
    parts = {name: y.detach().double() for name, y in x.leaves().items()}
    if "dt_bias" in parts:
        parts["dt_bias"] = parts["dt_bias"].view(-1, dim)
    parts = {n: (y[heads] if n in ("A_log", "dt_bias") else y[:, :, heads]).contiguous() for n, y in parts.items()}
    leaves = {name: y.requires_grad_(d_out is not None) for name, y in parts.items()}
    q, k, v, g, beta = (leaves[name].flatten(0, 1) for name in ("q", "k", "v", "g", "beta"))
    if x.raw:
        q, k, beta = l2norm(q), l2norm(k), beta.sigmoid()
        g = log_decay(g, leaves["A_log"], leaves["dt_bias"], x.lower_bound)
    bounds = x.cu_seqlens
    if bounds is None:
        bounds = torch.arange(x.q.shape[0] + 1) * x.q.shape[1]
    state = v.new_zeros(len(bounds) - 1, *q.shape[1:], v.shape[-1])
    out, _ = recurrent_kda(q, k, v, g, beta, dim**-0.5, state, bounds)
    out = out.view(*x.v.shape[:2], -1, v.shape[-1])
    if d_out is None:
        return out, {}
    grads = torch.autograd.grad(out, list(leaves.values()), d_out[:, :, heads].double())
    return out.detach(), dict(zip(leaves, grads, strict=True))


def checked(name: str, x: Tensor, dim: int) -> Tensor:
    """The part of an output or gradient that `reference` gives."""
    if name == "dt_bias":
        return x.view(-1, dim)[:CHECKED_HEADS]
    return x[:CHECKED_HEADS] if name == "A_log" else x[:, :, :CHECKED_HEADS]


def rel_error(x: Tensor, ref: Tensor) -> float:
    """`‖x − ref‖ / ‖ref‖` in fp64, `‖x‖` where the reference is 0; NaN stays NaN."""
    norm = ref.double().norm()
    return float((x.double() - ref.double()).norm() / norm.where(norm > 0, 1))


def sample_rows(x: Tensor, rows: int = 4096) -> Tensor:
    """Some of the rows of `[B, T, H, D]` in fp32 on the CPU, always the same: to compare peers at full size."""
    if x.dim() == 1:
        return x.detach().float().cpu()
    flat = x.detach().reshape(-1, x.shape[-1])
    index = torch.randint(len(flat), (rows,), generator=torch.Generator().manual_seed(1))
    return flat[index.to(flat.device)].float().cpu()


def forward_bytes(w: Workload) -> int:
    """q, k, v, g and β (4 bytes) read once, the output written once, in bf16: 1,284 bytes per token-head at D = 128."""
    return w.token_heads * (5 * w.dim * 2 + 4)


def backward_bytes(w: Workload) -> int:
    """q, k, v, g, β, dO read once, dq, dk, dv, dg, dβ written once: 2,312 bytes per token-head at D = 128."""
    return w.token_heads * (9 * w.dim * 2 + 8)


def forward_flops(w: Workload) -> float:
    """The paper's `6 T d² + 3 T C d + T C²` per head with C = 64 (arXiv 2510.26692, Eq. 13): 126,976 per token-head."""
    return w.token_heads * (6 * w.dim**2 + 3 * 64 * w.dim + 64**2)


def backward_flops(w: Workload) -> float:
    """475,000 per token-head at D = 128, with the recomputation."""
    return forward_flops(w) * 475_000 / 126_976


def decode_bytes(batch: int, heads: int, layer: bool, form: str = "recurrent", dim: int = 128) -> int:
    """Bytes of one decoding step of one layer.

    recurrent: the fp32 state read and written. replay: the state read, and written once in 16 steps; the buffered rows
    of the chunk (k and v' in 2 bytes, G in 4, and a row of T in fp32) read for the tokens so far, 7.5 on average, and
    one appended. Both: q, k, v, g, output and, for the whole layer, the output gate and the convolution's window of 3
    inputs of q, k and v, read and written.
    """
    state = dim * dim * 4
    token = 5 * dim * 2 + 4
    if layer:
        token += dim * 2 + 2 * (CONV_WIDTH - 1) * 3 * dim * 2
    if form == "replay":
        row = dim * 8 + 16 * 4
        return int(batch * heads * (state * (1 + 1 / 16) + row * 8.5 + token))
    return batch * heads * (2 * state + token)


@dataclass
class DecodeInputs:
    """One token of `batch` sequences before (`x`, layer) or after (`x`, core) the short convolution.

    x: `[B, 3·H·D]`, q then k then v.  weight: `[3·H·D, 4]`.  window: `[B, 3·H·D, 3]` the inputs before, oldest first.
    g, gate: `[B, H, D]` before gate and output gate.  beta: `[B, H]` logits.  norm: `[D]`.  state: `[B, H, K, V]` fp32.
    """

    x: Tensor
    weight: Tensor
    window: Tensor
    g: Tensor
    beta: Tensor
    gate: Tensor
    norm: Tensor
    A_log: Tensor
    dt_bias: Tensor
    state: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, H, D."""
        batch, heads, dim = self.g.shape
        return batch, heads, dim


def make_decode_inputs(batch: int, heads: int, device: torch.device, dim: int = 128, seed: int = 0) -> DecodeInputs:
    gen = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(size, generator=gen, device=device, dtype=dtype)

    like = make_inputs(Workload("", 1, 1, heads, dim=dim), device, seed=seed)
    assert like.A_log is not None
    assert like.dt_bias is not None
    channels = 3 * heads * dim
    return DecodeInputs(
        x=normal(batch, channels),
        weight=normal(channels, CONV_WIDTH) / 2,
        window=normal(batch, channels, CONV_WIDTH - 1),
        g=normal(batch, heads, dim),
        beta=normal(batch, heads),
        gate=normal(batch, heads, dim),
        norm=1 + normal(dim) / 8,
        A_log=like.A_log,
        dt_bias=like.dt_bias,
        state=normal(batch, heads, dim, dim, dtype=torch.float32) / 4,
    )


def decode_reference(d: DecodeInputs, layer: bool, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Output `[B, H, D]` of the last of `steps` steps on the same token, and the state `[B, H, K, V]`; in fp64."""
    batch, heads, dim = d.shape
    x, window, state = d.x.double(), d.window.double(), d.state.double()
    g = log_decay(d.g.double(), d.A_log, d.dt_bias).exp()
    beta = d.beta.double().sigmoid()
    out = x.new_zeros(batch, heads, dim)
    for _ in range(steps):
        qkv = x
        if layer:
            taps = torch.cat([window, x[..., None]], dim=-1)
            window = taps[..., 1:]
            qkv = F.silu((taps * d.weight.double()).sum(-1))
        q, k, v = qkv.view(batch, 3, heads, dim).unbind(1)
        q, k = l2norm(q) * dim**-0.5, l2norm(k)
        state = g[..., None] * state
        error = v - torch.einsum("bhk,bhkv->bhv", k, state)
        state = state + beta[..., None, None] * torch.einsum("bhk,bhv->bhkv", k, error)
        out = torch.einsum("bhk,bhkv->bhv", q, state)
        if layer:
            rms = (out.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
            out = out * rms * d.norm.double() * d.gate.double().sigmoid()
    return out, state
