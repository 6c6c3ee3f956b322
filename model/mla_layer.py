"""Multi-head latent attention: keys and values of a token come from one small latent vector, which is all we cache."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import KimiLinearConfig

from deltarl.kernels.attention import packed_attention, piece_attention
from deltarl.kernels.backend import MAX_RANK, MAX_ROPE, use_triton
from deltarl.kernels.batch_invariant import is_batch_invariant
from deltarl.kernels.latent_decode import latent_attention_decode
from deltarl.kernels.precision import core_dtype
from deltarl.model.cache import PAGE_SIZE
from deltarl.model.config import uses_rope
from deltarl.model.feedforward import RMSNorm
from deltarl.model.packing import Packing

# In batch-invariant mode: bounds the memory for the parts that a long row's attention is cut into.
TOKENS_AT_ONCE = 1024
LATENT_NORM_EPS = 1e-6  # not rms_norm_eps: the reference code leaves the latent norms at their default


class MLALayer(nn.Module):
    """DeepSeek-V2 style latent attention with a shared key part that is not rotated (NoPE) unless the config asks.

    Training and prefill expand the latents to keys and values; decode keeps them compressed and moves the expansion
    to the query and the output instead ("absorbed" form): the same function, reading R + rope numbers a token.
    """

    def __init__(self, config: KimiLinearConfig):
        super().__init__()
        assert config.v_head_dim is not None  # only the class allows it
        self.num_heads, self.rank = config.num_attention_heads, config.kv_lora_rank
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.rotary = uses_rope(config)
        self.rope_theta = float(getattr(config, "rope_theta", 10_000.0))
        hidden, query = config.hidden_size, self.num_heads * (self.nope + self.rope)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, query, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=config.attention_bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, query, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=config.attention_bias)
        self.kv_a_layernorm = RMSNorm(self.rank, LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(self.rank, self.num_heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.value, hidden, bias=config.attention_bias)
        self.scale = (self.nope + self.rope) ** -0.5

    def forward(self, x: Tensor, packing: Packing, pages: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        """`[T, D]` packed to `[T, D]`.

        Args:
            pages: `[P, PAGE_SIZE, R + rope]` pool where the latents are left, if any.
            table: `[N, max_pages]` pages of each sequence. Pieces (`packing.start`) also see what is there already.
        """
        q, latent = self._query(x, packing.position), self._latent(x, packing.position)
        token_by_token = is_batch_invariant() and self._use_triton(q)
        if token_by_token and pages is None:
            pages, table = _own_pages(latent, packing)
        if pages is not None and table is not None:
            sequence = torch.repeat_interleave(
                torch.arange(len(table), device=x.device), packing.cu_seqlens.diff(), output_size=len(x)
            )
            page = table[sequence, packing.position // PAGE_SIZE].long()
            pages[page, packing.position % PAGE_SIZE] = latent.detach().to(pages)
            if token_by_token:
                if packing.start is None:  # else how long the longest is would have to be asked of the device
                    table = table[:, : -(-packing.padded.chunk_size // PAGE_SIZE)]
                out = self._token_by_token(q.detach(), pages, table[sequence], packing.position)
                if torch.is_grad_enabled():
                    out = _GradientOf.apply(self._expanded(q, latent, packing), out)
                return self.o_proj(out.flatten(-2).to(x.dtype))
            if packing.start is not None:
                return self._continue(x, q, pages, table, packing)
        return self.o_proj(self._expanded(q, latent, packing).flatten(-2).to(x.dtype))

    def _expanded(self, q: Tensor, latent: Tensor, packing: Packing) -> Tensor:
        """Attention of whole sequences, `[T, H, value]`."""
        q, compressed, shared_key = self._core(q, *latent.split([self.rank, self.rope], -1))
        key, value = self._keys_values(compressed, shared_key)
        return packed_attention(q, key, value, packing.cu_seqlens, packing.padded, self.scale)

    @torch.no_grad()
    def _token_by_token(self, q: Tensor, pages: Tensor, table: Tensor, position: Tensor) -> Tensor:
        """The decoder's numbers for packed tokens, `[T, H, value]`: each of them is a row of a batch to be decoded."""
        tokens = (slice(i, i + TOKENS_AT_ONCE) for i in range(0, len(q), TOKENS_AT_ONCE))
        return torch.cat([self._absorbed(q[t], pages, table[t], position[t]) for t in tokens])

    def _continue(self, x: Tensor, q: Tensor, pages: Tensor, table: Tensor, packing: Packing) -> Tensor:
        """Attention of pieces: a sequence's queries see its latents in `pages` up to their own position."""
        assert packing.start is not None
        lengths = packing.start + packing.cu_seqlens.diff()
        seen = Packing.build(F.pad(lengths.cumsum(0), (1, 0)))
        sequence = torch.repeat_interleave(torch.arange(len(table), device=x.device), lengths)
        latent = pages[table[sequence, seen.position // PAGE_SIZE].long(), seen.position % PAGE_SIZE]
        q, compressed, shared_key = self._core(q, *latent.split([self.rank, self.rope], -1))
        key, value = self._keys_values(compressed, shared_key)
        out = piece_attention(q, key, value, packing.cu_seqlens, seen.cu_seqlens, self.scale)
        return self.o_proj(out.flatten(-2).to(x.dtype))

    def _keys_values(self, compressed: Tensor, shared_key: Tensor) -> tuple[Tensor, Tensor]:
        """Of all heads, `[T, H, nope + rope]` and `[T, H, value]`, from latents."""
        expanded = torch.einsum("tr,hdr->thd", compressed, self._expand_weight(compressed.dtype))
        key, value = expanded.split([self.nope, self.value], -1)
        return torch.cat([key, shared_key.unsqueeze(1).expand(-1, self.num_heads, -1)], -1), value

    def decode(self, x: Tensor, pages: Tensor, table: Tensor, position: Tensor) -> Tensor:
        """One token for each of B rows, `[B, D]`.

        Args:
            pages: `[P, PAGE_SIZE, R + rope]`.  table: `[B, n]` pages of each row.
            position: `[B]` index of the token; below 0 for an idle row, of which there must be none in PyTorch.
        """
        q, latent = self._query(x, position), self._latent(x, position)
        if self._use_triton(q):
            from deltarl.kernels.gpu.latent_attention import append_latent  # Triton is there with a GPU only

            append_latent(latent, pages, table, position)
        else:
            page = table.gather(1, (position // PAGE_SIZE).unsqueeze(1)).squeeze(1).long()
            pages[page, position % PAGE_SIZE] = latent.to(pages)
        out = self._absorbed(q, pages, table, position)
        return self.o_proj(out.flatten(-2).to(x.dtype))

    def _absorbed(self, q: Tensor, pages: Tensor, table: Tensor, position: Tensor) -> Tensor:
        """Attention of one token per row over the latents in its pages, `[B, H, value]`."""
        (q,) = self._core(q)
        expand = self._expand_weight(q.dtype)
        nope, shared = q.split([self.nope, self.rope], -1)
        absorbed = torch.cat([torch.einsum("bhd,hdr->bhr", nope, expand[:, : self.nope]), shared], -1)
        if self._use_triton(q):
            from deltarl.kernels.gpu import latent_attention

            mixed = latent_attention.latent_attention_decode(
                absorbed, pages, table, position + 1, self.rank, self.scale
            )
        else:
            mixed = latent_attention_decode(absorbed, pages, table, position, self.rank, self.scale)
        return torch.einsum("bhr,hdr->bhd", mixed, expand[:, self.nope :])

    def _use_triton(self, q: Tensor) -> bool:
        return use_triton(q.device, q.dtype) and self.rank <= MAX_RANK and self.rope <= MAX_ROPE

    def _core(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the dtype attention is computed in; on a GPU that of the query, because the kernels add in fp32 anyway."""
        query = tensors[0]
        dtype = query.dtype if query.is_cuda else core_dtype(query.device, query.dtype)
        return tuple(t.to(dtype) for t in tensors)

    def _expand_weight(self, dtype: torch.dtype) -> Tensor:
        """`[H, nope + value, R]`: from a latent to every head's key part and value."""
        return self.kv_b_proj.weight.to(dtype).unflatten(0, (self.num_heads, -1))

    def _query(self, x: Tensor, position: Tensor) -> Tensor:
        """`[T, H, nope + rope]`."""
        q = self.q_proj(x) if hasattr(self, "q_proj") else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (self.num_heads, -1))
        if not self.rotary:
            return q
        return torch.cat([q[..., : self.nope], self._rotate(q[..., self.nope :], position)], -1)

    def _latent(self, x: Tensor, position: Tensor) -> Tensor:
        """`[T, R + rope]`: normalised latent and shared key part."""
        compressed, shared = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], -1)
        if self.rotary:
            shared = self._rotate(shared.unsqueeze(1), position).squeeze(1)
        return torch.cat([self.kv_a_layernorm(compressed), shared], -1)

    def _rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotary embedding over neighbouring channel pairs (the DeepSeek layout), `[T, ·, rope]`, angles in fp32."""
        frequency = self.rope_theta ** (-torch.arange(0, self.rope, 2, device=x.device).float() / self.rope)
        angle = (position.float().unsqueeze(-1) * frequency).unsqueeze(1)
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()]
        return torch.stack(turned, -1).flatten(-2).to(x.dtype)


def _own_pages(latent: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Room for the latents of packed sequences in pages, and the table `[N, max_pages]` of where each has its own."""
    lengths = packing.cu_seqlens.diff()
    spans = -(-lengths // PAGE_SIZE)
    first, longest = spans.cumsum(0) - spans, -(-packing.padded.chunk_size // PAGE_SIZE)
    table = (first.unsqueeze(1) + torch.arange(longest, device=latent.device)).int()
    most = len(latent) // PAGE_SIZE + len(lengths)
    return latent.new_zeros(most, PAGE_SIZE, latent.shape[1]), table


class _GradientOf(torch.autograd.Function):
    """One value with the gradient of another, which is the same but for rounding."""

    @staticmethod
    def forward(ctx: Any, differentiable: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
