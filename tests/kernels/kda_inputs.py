"""Random inputs of the recurrence, and the two ways to run it on packed sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from deltarl.kernels.chunk import CHUNK_SIZE, ChunkBuffer, chunk_kda
from deltarl.kernels.gate import l2norm
from deltarl.kernels.layout import ChunkLayout
from deltarl.kernels.recurrent import recurrent_kda

HEADS, KEY_DIM, VALUE_DIM = 2, 6, 5
SCALE = KEY_DIM**-0.5


@dataclass
class Inputs:
    """Packed `q, k, g [T,H,K]`, `v [T,H,V]`, `beta [T,H]`, and the state `[N,H,K,V]` each sequence starts from."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    state: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def tokens(self, rows: slice) -> tuple[Tensor, ...]:
        """q, k, v, g and beta of some tokens."""
        return tuple(x[rows] for x in self.tensors()[:-1])

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(*(x.to(dtype) for x in self.tensors()))

    def with_grad(self) -> "Inputs":
        return Inputs(*(x.clone().requires_grad_() for x in self.tensors()))


def bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def constant_gate(strength: float) -> Tensor:
    """A log decay for `random_inputs`: the same for every token and channel."""
    return torch.tensor(strength, dtype=torch.float64)


def mixed_gate(tokens: int, seed: int = 0) -> Tensor:
    """`[T, H, K]` log decays spread evenly, on a log scale, from -1e-6 to -100: all strengths within every chunk."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.rand(tokens, HEADS, KEY_DIM, generator=generator, dtype=torch.float64) * 8 - 6
    return -(10**exponent)


def random_inputs(
    lengths: Sequence[int], gate: Tensor | None = None, beta: float | None = None, seed: int = 0
) -> Inputs:
    """fp64 inputs with normalised q and k; gate and beta are random where not given."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = (tokens, HEADS)
    q, k = l2norm(normal(*rows, KEY_DIM)), l2norm(normal(*rows, KEY_DIM))
    v, g = normal(*rows, VALUE_DIM), -torch.nn.functional.softplus(normal(*rows, KEY_DIM) - 2)
    b = normal(*rows).sigmoid()
    if gate is not None:
        g = gate.expand_as(g).clone()
    if beta is not None:
        b = torch.full_like(b, beta)
    return Inputs(q, k, v, g, b, normal(len(lengths), HEADS, KEY_DIM, VALUE_DIM))


def run_recurrent(x: Inputs, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    return recurrent_kda(x.q, x.k, x.v, x.g, x.beta, SCALE, x.state, bounds(lengths))


def run_chunk(x: Inputs, lengths: Sequence[int], chunk_size: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    layout = ChunkLayout.build(bounds(lengths), chunk_size)
    out, final, _ = chunk_kda(x.q, x.k, x.v, x.g, x.beta, SCALE, x.state, layout)
    return out, final


def run_prefill(x: Inputs, lengths: Sequence[int]) -> tuple[Tensor, ChunkBuffer]:
    layout = ChunkLayout.build(bounds(lengths), CHUNK_SIZE)
    out, _, buffer = chunk_kda(x.q, x.k, x.v, x.g, x.beta, SCALE, x.state, layout, output_buffer=True)
    assert buffer is not None
    return out, buffer


def relative_error(got: Tensor, want: Tensor, scale: Tensor | None = None) -> float:
    """Norm of the difference over the norm of `scale`, `want` if None; in fp64."""
    got, want = got.detach().double(), want.detach().double()
    assert torch.isfinite(got).all()
    scale = want if scale is None else scale.detach().double()
    return float((got - want).norm() / scale.norm().clamp_min(1e-300))
