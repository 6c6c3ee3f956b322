"""Inputs of the KDA kernels, their fp64 reference with the scale of its errors, and a layer that decodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from deltarl.kernels import chunk as torch_chunk
from deltarl.kernels.gate import l2norm, log_decay
from deltarl.kernels.gpu.chunk import chunk_kda, prefill_kda
from deltarl.kernels.gpu.conv import short_conv, store_window
from deltarl.kernels.gpu.decode import decode_step
from deltarl.kernels.gpu.index import CHUNK
from deltarl.kernels.gpu.inputs import ChunkInputs, Gate
from deltarl.kernels.gpu.norm import gated_norm
from deltarl.kernels.gpu.ops import INTERPRETED
from deltarl.kernels.gpu.slots import SlotState
from deltarl.kernels.layout import ChunkLayout
from deltarl.kernels.recurrent import recurrent_kda

# ‖error‖ / ‖reference‖ of the output and the final state, and of the gradients. fp16 inputs are multiplied in bf16.
FORWARD = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
BACKWARD = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
# ‖error‖ that fp32 sums may add, of the terms that cancel in a gate's gradient.
SUMS = 3e-6
# What has decayed to less is as good as nothing: fp32 ends at 1e-38, and e^-87.
NOTHING = 1e-30

TOKENS = ("q", "k", "v", "g", "beta")
LEAVES = (*TOKENS, "a_log", "dt_bias", "initial")
EPS = 1e-5

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def gpu_only(test: Callable) -> Callable:
    for mark in NEEDS_GPU:
        test = mark(test)
    return test


def on_gpu(*values: Any) -> Any:
    """A case that is too large for the interpreter."""
    return pytest.param(*values, marks=NEEDS_GPU)


def _patch_once_per_launch() -> None:
    """Triton's interpreter replaces its language's functions anew for every call of a device function.

    Once per launch and module does, and takes half the time.
    """
    done: set[int] = set()
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__

    def patch_once(fn: Any) -> Any:
        if id(fn.__globals__) in done:
            return None
        done.add(id(fn.__globals__))
        return patch(fn)

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> None:
        done.clear()
        launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_anew


if INTERPRETED:
    _patch_once_per_launch()


@dataclass(frozen=True)
class Problem:
    """Arguments of `chunk_kda` for packed sequences: q, k, g `[T, H, K]`, v `[T, H, V]`, beta `[T, H]`, and so on.

    Without a_log and dt_bias, g is the log decay.  norm, sigmoid: left to the kernel.
    """

    lengths: tuple[int, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    a_log: Tensor | None
    dt_bias: Tensor | None
    initial: Tensor
    lower_bound: float | None = None
    norm: bool = True
    sigmoid: bool = True

    def leaves(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in LEAVES if getattr(self, name) is not None}

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *accumulate(self.lengths)], device=self.q.device)

    def alone(self, n: int) -> "Problem":
        """Sequence n."""
        tokens = {name: getattr(self, name).split(self.lengths)[n] for name in TOKENS}
        return replace(self, lengths=self.lengths[n : n + 1], initial=self.initial[n : n + 1], **tokens)

    def weights(self, out: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients to send back; those of a sequence do not depend on where it is packed."""
        generator = torch.Generator().manual_seed(1)
        state = torch.randn(final.shape[1:], generator=generator).expand(final.shape)
        rows = torch.randn(max(self.lengths), *out.shape[1:], generator=generator)
        return torch.cat([rows[:n] for n in self.lengths]).to(out), state.contiguous().to(final)


def random_problem(
    lengths: Sequence[int],
    dims: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    gate: str | Tensor = "softplus",
    *,
    in_kernel: bool = True,
    beta: Tensor | None = None,
    seed: int = 0,
) -> Problem:
    """
    Args:
        dims: H, K, V.
        gate: "softplus" or "bounded", with A_log and dt_bias; or the log decay, of a shape like `[T, H, K]`.
        in_kernel: leave the norm and the sigmoid of beta to the kernel.
        beta: itself, not its logit, of a shape like `[T, H]`.
    """
    heads, key_dim, value_dim = dims
    tokens = sum(lengths)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, k, v, g = (normal(tokens, heads, dim) for dim in (key_dim, key_dim, value_dim, key_dim))
    logit, initial = normal(tokens, heads), normal(len(lengths), heads, key_dim, value_dim)
    parameters = (torch.rand(heads, generator=generator) * 2).to(device), (normal(heads * key_dim) - 3).to(device)
    if isinstance(gate, Tensor):
        g, parameters = gate.expand_as(g).contiguous(), (None, None)
    if not in_kernel:
        q, k = l2norm(q), l2norm(k)
        beta = logit.sigmoid() if beta is None else beta
    return Problem(
        tuple(lengths),
        *(x.to(device, dtype) for x in (q, k, v, g, logit if beta is None else beta.expand_as(logit).contiguous())),
        *parameters,
        initial.to(device),
        lower_bound=-5.0 if gate == "bounded" else None,
        norm=in_kernel,
        sigmoid=beta is None,
    )


def constant_gate(strength: float) -> Tensor:
    return torch.full((1, 1, 1), strength)


def mixed_gate(tokens: int, heads: int, key_dim: int) -> Tensor:
    """Log decays spread evenly, on a log scale, from -1e-6 to -100: all strengths within every chunk."""
    generator = torch.Generator().manual_seed(0)
    return -(10 ** (torch.rand(tokens, heads, key_dim, generator=generator) * 8 - 6))


def named_gate(name: str, tokens: int, dims: tuple[int, int, int]) -> str | Tensor:
    """Log decays weak everywhere, too strong to be undone within a chunk, or mixed; else a kind of gate."""
    if name == "mixed":
        return mixed_gate(tokens, *dims[:2])
    return {"weak": constant_gate(-0.05), "strong": constant_gate(-12.0)}.get(name, name)


def forward(x: Problem, **options: Any) -> tuple[Tensor, Tensor]:
    """Output `[T, H, V]` and final state."""
    out, final = chunk_kda(
        *(getattr(x, name)[None] for name in TOKENS),
        **{
            "A_log": x.a_log,
            "dt_bias": x.dt_bias,
            "lower_bound": x.lower_bound,
            "initial_state": x.initial,
            "output_final_state": True,
            "use_qk_l2norm_in_kernel": x.norm,
            "use_gate_in_kernel": x.a_log is not None,
            "use_beta_sigmoid_in_kernel": x.sigmoid,
            "cu_seqlens": x.cu_seqlens,
        }
        | options,
    )
    return out[0], final


def run(x: Problem) -> dict[str, Tensor]:
    """Output, final state, and the gradients through both of all that has one."""
    x = replace(x, **{name: t.detach().clone().requires_grad_() for name, t in x.leaves().items()})
    out, final = forward(x)
    leaves = x.leaves()
    gradients = torch.autograd.grad((out, final), list(leaves.values()), x.weights(out, final))
    assert [d.dtype for d in gradients] == [t.dtype for t in leaves.values()]
    return {"out": out.detach(), "final": final.detach(), **dict(zip(leaves, gradients, strict=True))}


@dataclass(frozen=True)
class Reference:
    """What `run` should give, in fp64, and the size of the terms that the gate's gradients are sums of.

    With q, k after the norm and dq, dk their gradients, the gradient of a decay is a sum of `q dq` and `k dk` of either
    sign. Where all is forgotten they cancel, and what a kernel can return is the rounding of its fp32 sums.

    A_log has one number per head, a sum over channels and tokens that nearly cancels too. Its error does not: that of
    different channels adds in squares, but that of tokens of a group of 64 adds up, because the gradient of one's decay
    contains those of all later ones. Hence its scale, `[.., H, K]`: the sum of absolute terms over a group of tokens.

    Attributes:
        terms: of "g", "dt_bias" and "a_log".
        rate: `[T, H, K]`, derivative of the log decay by A_log over that by g.
    """

    values: dict[str, Tensor]
    terms: dict[str, Tensor]
    rate: Tensor | None


def reference(x: Problem, chunked: bool = False) -> Reference:
    """The recurrence in fp64 on the CPU; chunked: `kernels/chunk.py` in fp64 instead, where there is much to do."""
    device, bound = x.q.device, x.lower_bound
    x = replace(x, **{name: t.detach().cpu().double().requires_grad_() for name, t in x.leaves().items()})
    q, k = (l2norm(x.q), l2norm(x.k)) if x.norm else (x.q * 1, x.k * 1)
    if x.a_log is None or x.dt_bias is None:
        decay, slope, slope_a = x.g * 1, torch.ones_like(x.g), None
    else:
        bias = x.dt_bias
        decay = log_decay(x.g, x.a_log, bias, bound)
        g, a = x.g.detach(), x.a_log.detach()
        slope = torch.func.jvp(lambda t: log_decay(t, a, bias, bound), (g,), (torch.ones_like(g),))[1].detach()
        slope_a = torch.func.jvp(lambda t: log_decay(g, t, bias, bound), (a,), (torch.ones_like(a),))[1].detach()
    beta, scale = x.beta.sigmoid() if x.sigmoid else x.beta, x.q.shape[-1] ** -0.5
    if chunked:
        layout = ChunkLayout.build(x.cu_seqlens, torch_chunk.CHUNK_SIZE)
        out, final, _ = torch_chunk.chunk_kda(q, k, x.v, decay, beta, scale, x.initial, layout)
    else:
        out, final = recurrent_kda(q, k, x.v, decay, beta, scale, x.initial, x.cu_seqlens)
    leaves = x.leaves()
    wanted = [*leaves.values(), q, k, decay]
    *gradients, d_q, d_k, d_decay = torch.autograd.grad((out, final), wanted, x.weights(out, final))
    values = {"out": out.detach(), "final": final.detach(), **dict(zip(leaves, gradients, strict=True))}
    size = torch.hypot(q * d_q, k * d_k).detach() * slope.abs()
    terms, rate = {"g": size}, None
    if slope_a is not None:
        groups = [group for part in (d_decay * slope_a).split(x.lengths) for group in part.split(64)]
        terms |= {"dt_bias": size.square().sum(0).sqrt(), "a_log": torch.stack([t.abs().sum(0) for t in groups])}
        rate = (slope_a / slope).to(device)
    return Reference(*({name: t.to(device) for name, t in part.items()} for part in (values, terms)), rate)


def norm(x: Tensor) -> float:
    return float(x.double().norm())


def relative_errors(got: dict[str, Tensor], want: Reference) -> dict[str, float]:
    """Norm of each difference over that of the reference; of A_log, over that of its terms."""
    scale = want.values | {name: t for name, t in want.terms.items() if name == "a_log"}
    return {name: norm(got[name] - value) / max(NOTHING, norm(scale[name])) for name, value in want.values.items()}


def shares(got: dict[str, Tensor], want: Reference, dtype: torch.dtype) -> dict[str, float]:
    """Each error as a share of what `dtype` allows; a gate's gradients may add the rounding of sums of their terms."""
    result = {}
    for name, error in relative_errors(got, want).items():
        assert got[name].shape == want.values[name].shape
        assert bool(torch.isfinite(got[name]).all()), name
        allowed = FORWARD[dtype] if name in ("out", "final") else BACKWARD[dtype]
        if name in ("g", "dt_bias"):
            allowed += SUMS * norm(want.terms[name]) / max(NOTHING, norm(want.values[name]))
        result[name] = error / allowed
    return result


def assert_near(got: dict[str, Tensor], want: Reference, dtype: torch.dtype) -> None:
    too_far = {name: share for name, share in shares(got, want, dtype).items() if not share <= 1}
    assert not too_far, too_far


def by_sequence(x: Problem, got: dict[str, Tensor], want: Reference) -> list[tuple[dict[str, Tensor], Reference]]:
    """Results and reference of each sequence, without the gradients of parameters."""

    def split(values: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        tokens = {name: t.split(x.lengths) for name, t in values.items() if name in ("out", *TOKENS)}
        states = {name: t.split(1) for name, t in values.items() if name in ("final", "initial")}
        return [{name: parts[n] for name, parts in (tokens | states).items()} for n in range(len(x.lengths))]

    values, terms = split(want.values), split(want.terms)
    return [(a, Reference(b, c, None)) for a, b, c in zip(split(got), values, terms, strict=True)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaN equals NaN."""
    return a.shape == b.shape and torch.equal(*(x.contiguous().view(torch.uint8) for x in (a, b)))


@dataclass(frozen=True)
class Tokens:
    """Inputs of a layer at N sequences of L tokens: qkv `[N, L, D]`, g, beta and out_gate `[N, L, H, ...]`."""

    qkv: Tensor
    g: Tensor
    beta: Tensor
    out_gate: Tensor

    def rows(self, sequence: Tensor, position: Tensor) -> "Tokens":
        """`[T, ...]`"""
        return Tokens(*(x[sequence, position] for x in (self.qkv, self.g, self.beta, self.out_gate)))


@dataclass
class Memory:
    """What a layer keeps of the sequences it decodes."""

    window: Tensor
    state: SlotState

    def tensors(self) -> tuple[Tensor, ...]:
        return self.window, *self.state.tensors()

    def clone(self) -> "Memory":
        return Memory(self.window.clone(), SlotState(*(x.clone() for x in self.state.tensors())))

    def known(self, slot: int, length: int) -> list[Tensor]:
        """What counts in the slot of a sequence of `length` tokens; everything else is leftovers."""
        width = self.window.shape[1]
        ring = self.window[slot][[p % width for p in range(max(0, length - width), length)]]
        state, *buffers = (x[slot] for x in self.state.tensors())
        return [ring, state, *(x[:, : length % CHUNK] for x in buffers)]


@dataclass(frozen=True)
class Layer:
    """Convolution, KDA and gated norm, as prefill over pieces of sequences and as decode of single tokens."""

    dims: tuple[int, int, int]
    conv_weight: Tensor
    gate: Gate
    lower_bound: float | None
    norm_weight: Tensor

    @classmethod
    def random(
        cls, dims: tuple[int, int, int], dtype: torch.dtype, device: torch.device, bound: float | None, width: int = 4
    ) -> "Layer":
        heads, key_dim, value_dim = dims
        generator = torch.Generator().manual_seed(2)
        channels = heads * (2 * key_dim + value_dim)
        weight, bias, norm_weight = (
            torch.randn(n, generator=generator).to(device) for n in (channels * width, heads * key_dim, value_dim)
        )
        gate = Gate.of((torch.rand(heads, generator=generator) * 2).to(device), bias - 3, bound, True)
        return cls(dims, weight.view(channels, width).to(dtype), gate, bound, norm_weight.to(dtype))

    def tokens(self, sequences: int, length: int, strength: float, spread: float) -> Tokens:
        """Gate inputs of mean `strength` and deviation `spread`."""
        heads, key_dim, value_dim = self.dims
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(sequences, length, *shape, generator=generator)

        qkv, g = normal(len(self.conv_weight)), normal(heads, key_dim) * spread + strength
        tokens = qkv, g, normal(heads), normal(heads, value_dim)
        return Tokens(*(x.to(self.conv_weight) for x in tokens))

    def memory(self, slots: int, fill: float = torch.nan) -> Memory:
        """Full of leftovers."""
        channels, width = self.conv_weight.shape
        state = SlotState.empty(slots, *self.dims, self.conv_weight.dtype, self.conv_weight.device)
        memory = Memory(self.conv_weight.new_empty(slots, width, channels), state)
        for x in memory.tensors():
            x.fill_(fill)
        return memory

    def prefill(
        self, x: Tokens, memory: Memory, slots: Tensor, lengths: Sequence[int], start: Sequence[int] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Output of the recurrence and of the layer, per sequence; start: tokens that were prefilled before, if any."""
        device = slots.device
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], device=device)
        before = torch.tensor(start or [0] * len(lengths), device=device)
        sequence = torch.repeat_interleave(torch.tensor(lengths)).to(device)
        position = torch.cat([torch.arange(n) for n in lengths]).to(device) + before[sequence]
        rows = x.rows(sequence, position)
        window = (memory.window, slots) if start else ()
        q, k, v = self.heads(short_conv(rows.qkv, self.conv_weight, cu_seqlens, position, *window))
        store_window(rows.qkv, cu_seqlens, memory.window, slots, before if start else None)
        inputs = ChunkInputs(q, k, v, rows.g, rows.beta, self.gate, self.dims[1] ** -0.5, True, True)
        out = prefill_kda(inputs, cu_seqlens, memory.state, slots, before % CHUNK if start else None)
        y = gated_norm(out, rows.out_gate, self.norm_weight, EPS)
        return list(out.split(list(lengths))), list(y.split(list(lengths)))

    def heads(self, qkv: Tensor) -> list[Tensor]:
        """q, k `[T, H, K]` and v `[T, H, V]` side by side."""
        heads, key_dim, value_dim = self.dims
        return [t.unflatten(-1, (heads, -1)) for t in qkv.split([heads * n for n in (key_dim, key_dim, value_dim)], -1)]

    def learn(self, x: Tokens, length: int) -> tuple[Tensor, Tensor]:
        """Output of the recurrence and final state of the first sequence, as in training."""
        position = torch.arange(length, device=x.qkv.device)
        rows = x.rows(position * 0, position)
        qkv = short_conv(rows.qkv, self.conv_weight, torch.tensor([0, length], device=x.qkv.device), position)
        out, final = chunk_kda(
            *(t[None] for t in (*self.heads(qkv), rows.g, rows.beta)),
            A_log=self.gate.a_log,
            dt_bias=self.gate.dt_bias,
            lower_bound=self.lower_bound,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
            use_gate_in_kernel=True,
            use_beta_sigmoid_in_kernel=True,
        )
        return out[0], final

    def decode(self, x: Tokens, memory: Memory, slots: Tensor, position: Tensor, recurrent: bool = False) -> Tensor:
        """One token of each sequence, of those whose slot is not below 0."""
        rows = x.rows(torch.arange(len(slots), device=slots.device), position)
        return decode_step(
            rows.qkv,
            rows.g,
            rows.beta,
            rows.out_gate,
            conv_weight=self.conv_weight,
            gate=self.gate,
            norm_weight=self.norm_weight,
            eps=EPS,
            window=memory.window,
            state=memory.state,
            slots=slots,
            position=position,
            recurrent=recurrent,
        )
