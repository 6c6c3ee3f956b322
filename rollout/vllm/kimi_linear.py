"""`kimi_linear` on a CPU under vLLM 0.32: KDA in PyTorch, and latent attention of any size.

vLLM has the model for GPUs. Four things keep it from a CPU: the class it picks there needs CUDA's cutlass, so the
ROCm class, which is made of generic layers, is taken; its KDA kernels are Triton, replaced here by ours; and its CPU
attention is compiled for one latent size and one page size, which are opened up, with attention in PyTorch. Imported
in vLLM's process only.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.model_executor.custom_op import PluggableLayer
from vllm.model_executor.layers.attention.mla_attention import MLACommonBackend
from vllm.model_executor.layers.mamba.gdn.kimi_gdn_linear_attn import KimiGatedDeltaNetAttention
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.models.kimi_k3.amd import linear as stock
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend, CPUMLAImpl

from deltarl.kernels.chunk import CHUNK_SIZE, chunk_kda
from deltarl.kernels.conv import last_inputs, short_conv, short_conv_step
from deltarl.kernels.gate import l2norm, log_decay
from deltarl.kernels.layout import ChunkLayout

LATENT_NORM_EPS = 1e-6  # as deltarl.model.mla_layer, and the released code


class KimiLinearForCausalLM(stock.KimiLinearForCausalLM):
    """vLLM's model, with transformers' configuration of the feed-forward layers and the released code's epsilons."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        _translate(config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for name, module in self.named_modules():
            if name.endswith((".kv_a_layernorm", ".q_a_layernorm")):
                module.variance_epsilon = LATENT_NORM_EPS
            elif isinstance(module, KimiGatedDeltaNetAttention):
                module.o_norm.eps = config.rms_norm_eps


def _translate(config: Any) -> None:
    """vLLM knows neither `mlp_layer_types`, which transformers writes, nor rotated keys, which are ours."""
    if not config.mla_use_nope:
        raise ValueError(
            "this checkpoint rotates its attention keys (mla_use_nope is false), which vLLM's kimi_linear does not; "
            "use deltarl's own engine for it"
        )
    if config.linear_attn_config.get("gate") == "head":
        raise ValueError(
            "this checkpoint has one forget gate a head (Gated DeltaNet), and vLLM's kimi_linear one a channel; use "
            "deltarl's own engine for it"
        )
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds is None:
        return
    dense = kinds.count("dense")
    if kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
        raise ValueError(f"vLLM's kimi_linear takes dense layers before sparse ones, the config has {kinds}")
    config.first_k_dense_replace, config.moe_layer_freq = dense, 1
    if dense == len(kinds):
        config.num_experts = None


@PluggableLayer.register_oot(name="KimiGatedDeltaNetAttention")
class TorchKDA(KimiGatedDeltaNetAttention):
    """KDA from our kernels. vLLM puts a batch's decoding sequences, of one token each, before those it prefills."""

    def _forward(self, mixed_qkv: Tensor, g1: Tensor, g2: Tensor, beta: Tensor, core_attn_out: Tensor) -> None:
        """Fills `core_attn_out` `[1, T, H, V]` from projections `[T, 3HK]`, `[1, T, H, K]`, `[T, H, V]`, `[1, T, H]`.

        Tokens beyond `num_actual_tokens` are padding.
        """
        of_layers = get_forward_context().attn_metadata
        meta = of_layers.get(self.prefix) if of_layers else None
        if meta is None:  # vLLM measures its memory with a batch that has no sequences
            return
        if meta.spec_sequence_masks is not None:
            raise NotImplementedError("speculative decoding of kimi_linear on a CPU")
        decodes, prefills, tokens = meta.num_decodes, meta.num_prefills, meta.num_actual_tokens
        x, forget, beta = mixed_qkv[:tokens], g1[0, :tokens], beta[0, :tokens]
        slots = meta.non_spec_state_indices_tensor.long()
        out = []
        if decodes:
            out.append(self._decode(x[:decodes], forget[:decodes], beta[:decodes], slots[:decodes]))
        if prefills:
            some = slice(decodes, decodes + prefills)
            if meta.has_initial_state[some].any():
                raise NotImplementedError("a prompt in chunks, which vLLM does not make on a CPU with latent attention")
            bounds = meta.non_spec_query_start_loc[decodes : decodes + prefills + 1].long() - decodes
            out.append(self._prefill(x[decodes:], forget[decodes:], beta[decodes:], slots[some], bounds))
        mixed = torch.cat(out).to(core_attn_out.dtype)
        core_attn_out[0, :tokens] = self.o_norm(mixed, g2[:tokens])

    def _decode(self, x: Tensor, forget: Tensor, beta: Tensor, slots: Tensor) -> Tensor:
        """One token of each sequence, by the recurrence of `deltarl.kernels.recurrent`: `[B, H, V]` in fp32."""
        windows, states = self._caches()
        window = windows[slots]
        q, k, v, g, beta = self._recurrence_inputs(short_conv_step(x, self._taps(x), window), forget, beta)
        windows[slots] = window
        q, k = l2norm(q), l2norm(k)
        state = states[slots] * g.exp().unsqueeze(-1)
        error = beta.unsqueeze(-1) * (v - torch.einsum("nhk,nhkv->nhv", k, state))
        state.flatten(0, 1).baddbmm_(k.flatten(0, 1).unsqueeze(-1), error.flatten(0, 1).unsqueeze(1))
        states[slots] = state
        return self.head_dim**-0.5 * torch.einsum("nhk,nhkv->nhv", q, state)

    def _prefill(self, x: Tensor, forget: Tensor, beta: Tensor, slots: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Whole prompts, packed: `[T, H, V]` in fp32."""
        windows, states = self._caches()
        position = torch.arange(len(x)) - torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
        mixed = short_conv(x, self._taps(x), position)
        windows[slots] = last_inputs(x, cu_seqlens, self.conv_size)
        q, k, v, g, beta = self._recurrence_inputs(mixed, forget, beta)
        layout = ChunkLayout.build(cu_seqlens, CHUNK_SIZE)
        out, state, _ = chunk_kda(q, k, v, g, beta, self.head_dim**-0.5, None, layout, use_qk_l2norm=True)
        assert state is not None  # asked for
        states[slots] = state
        return out

    def _caches(self) -> tuple[Tensor, Tensor]:
        """Windows `[slots, W-1, 3HK]` of the convolution and states `[slots, H, K, V]`."""
        windows, states = self.kv_cache
        return (windows.transpose(-1, -2) if is_conv_state_dim_first() else windows), states

    def _taps(self, x: Tensor) -> Tensor:
        return self.conv1d.weight.flatten(1).to(x.dtype)

    def _recurrence_inputs(
        self, mixed: Tensor, forget: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v, log decay and beta in fp32, heads split."""
        q, k, v = mixed.float().unflatten(-1, (3, self.local_num_heads, self.head_dim)).unbind(-3)
        return q, k, v, log_decay(forget, self.A_log, self.dt_bias, self.gate_lower_bound), beta.float().sigmoid()


def _attend_pages(
    self: CPUMLAImpl, q: Any, kv_c_and_k_pe_cache: Tensor, attn_metadata: Any, layer: Any
) -> tuple[Tensor, None]:
    """Absorbed latent attention of one query a sequence over its pages, for any size: `[B, H, R]`."""
    q = torch.cat(q, -1) if isinstance(q, tuple) else q
    length = attn_metadata.decode.seq_lens.long()
    pages = -(-int(length.max()) // kv_c_and_k_pe_cache.shape[1])
    seen = kv_c_and_k_pe_cache[attn_metadata.decode.block_table[:, :pages].long()].flatten(1, 2).to(q.dtype)
    beyond = torch.arange(seen.shape[1]) >= length.unsqueeze(1)
    seen.masked_fill_(beyond.unsqueeze(-1), 0.0)  # a page's last user may have left NaN there
    scores = (q @ seen.transpose(1, 2)).float() * self.scale
    weight = scores.masked_fill(beyond.unsqueeze(1), -torch.inf).softmax(-1).to(q.dtype)
    return weight @ seen[..., : self.kv_lora_rank], None


# An out-of-tree attention backend cannot be chosen by name on a CPU, so the one there is loses its limits. AMX
# machines get it too: `server.py` asks for it by name.
CPUMLAImpl.forward_mqa = _attend_pages
CPUMLABackend.get_supported_head_sizes = MLACommonBackend.get_supported_head_sizes = classmethod(lambda cls: [])
CPUMLABackend.supports_block_size = classmethod(lambda cls, size: size is None or size % 16 == 0)
CPUMLABackend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(16)])
