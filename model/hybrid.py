"""The hybrid language model: KDA layers with a full-attention layer every fourth, compatible with `kimi_linear`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, KimiLinearConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from deltarl.kernels.backend import MAX_RANK, MAX_ROPE, choose_backend
from deltarl.kernels.chunk import CHUNK_SIZE
from deltarl.kernels.logprobs import token_logprobs
from deltarl.kernels.precision import MIN_ROWS
from deltarl.model.cache import PAGE_SIZE, HybridCache
from deltarl.model.config import layer_kinds, mlp_kinds
from deltarl.model.feedforward import MLP, RMSNorm, Router, SparseMoE
from deltarl.model.kda_layer import GatedNorm, KDALayer
from deltarl.model.mla_layer import MLALayer
from deltarl.model.packing import Packing
from deltarl.model.routing import Routing, routing_shape


class DecoderLayer(nn.Module):
    """Pre-norm block: token mixer (KDA or MLA), then feed-forward (dense or MoE)."""

    def __init__(self, config: KimiLinearConfig, index: int):
        super().__init__()
        linear = layer_kinds(config)[index] == "linear_attention"
        self.self_attn: KDALayer | MLALayer = KDALayer(config) if linear else MLALayer(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # The checkpoint names the two kinds of feed-forward layer differently.
        if mlp_kinds(config)[index] == "sparse":
            self.block_sparse_moe = SparseMoE(config, mlp_kinds(config)[:index].count("sparse"))
        else:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        cache: Any = None,
        rows: Tensor | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """rows: where in the cache: of a KDA layer `[N]` rows, of an attention layer `[N, max_pages]` pages."""
        return self._feed_forward(x + self.self_attn(self.input_layernorm(x), packing, cache, rows), routing)

    def decode(
        self,
        x: Tensor,
        cache: Any,
        slots: Tensor,
        offset: Tensor,
        table: Tensor,
        position: Tensor,
        routing: Routing | None = None,
    ) -> Tensor:
        normed = self.input_layernorm(x)
        if isinstance(self.self_attn, KDALayer):
            mixed = self.self_attn.decode(normed, cache, slots, offset, position)
        else:
            mixed = self.self_attn.decode(normed, cache, table, position)
        return self._feed_forward(x + mixed, routing)

    def _feed_forward(self, x: Tensor, routing: Routing | None) -> Tensor:
        normed = self.post_attention_layernorm(x)
        return x + (self.block_sparse_moe(normed, routing) if hasattr(self, "block_sparse_moe") else self.mlp(normed))


class HybridModel(nn.Module):
    """Embedding, decoder layers, final norm. Whatever comes in, the layers see packed sequences.

    Attributes:
        activation_checkpointing: keep each layer's input alone for the backward pass, which computes the layer again.
    """

    def __init__(self, config: KimiLinearConfig):
        super().__init__()
        self.activation_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | Packing | None = None,
        routing: Routing | None = None,
        **unused: Any,
    ) -> BaseModelOutput:
        """Hidden states `[B, T, D]` of padded or packed ids; see `HybridForCausalLM.forward`."""
        if cu_seqlens is not None:
            packing = cu_seqlens if isinstance(cu_seqlens, Packing) else Packing.build(cu_seqlens)
            hidden = self.packed(input_ids.squeeze(0), packing, routing=routing)
            return BaseModelOutput(cast(torch.FloatTensor, hidden.unsqueeze(0)))
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        packing = Packing.from_lengths(mask.sum(1).tolist(), device=input_ids.device)
        hidden = self.packed(input_ids[mask], packing, routing=routing)
        padded = hidden.new_zeros(*input_ids.shape, hidden.shape[-1]).masked_scatter(mask.unsqueeze(-1), hidden)
        return BaseModelOutput(cast(torch.FloatTensor, padded))

    def packed(
        self,
        ids: Tensor,
        packing: Packing,
        cache: HybridCache | None = None,
        rows: Tensor | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """`[T]` token ids to `[T, D]` hidden states; with a cache, also prefills its `rows` (one per sequence)."""
        if cache is not None and cache.routed_experts is not None:
            routing = Routing()
        x = self.embed_tokens(ids)
        table = None if cache is None or rows is None else cache.block_table[rows]
        if cache is not None and rows is not None and packing.start is not None:
            cache.clear_rows(rows[packing.start == 0])  # pieces go on from what the rows hold
        for i, layer in enumerate(self.layers):
            if cache is None and self.activation_checkpointing and torch.is_grad_enabled():
                # Nothing in a layer is random.
                x = checkpoint(layer, x, packing, routing=routing, use_reentrant=False, preserve_rng_state=False)
            elif cache is None:
                x = layer(x, packing, routing=routing)
            else:
                where = table if isinstance(cache.layers[i], Tensor) else rows
                x = layer(x, packing, cache.layers[i], where, routing)
        if cache is not None:
            lengths = packing.cu_seqlens.diff()
            if cache.routed_experts is not None and table is not None and routing is not None:
                own_table = table.repeat_interleave(lengths, 0, output_size=len(ids))
                cache.note_experts(own_table, packing.position, routing.taken)
            cache.length[rows] = lengths if packing.start is None else packing.start + lengths
        return self.norm(x)

    def decode(self, ids: Tensor, cache: HybridCache, longest: int | None = None) -> Tensor:
        """Next token of every row of `cache`, `[B]` ids to `[B, D]` hidden states; the cache moves on by one.

        Args:
            longest: at least the length of every row before this token; asked of the device if None.
        """
        x = self.embed_tokens(ids)
        position = cache.length
        pages = (int(position.max()) if longest is None else longest) // PAGE_SIZE + 1
        table = cache.block_table[:, :pages]
        slots, offset = torch.arange(len(ids), device=ids.device).where(position >= 0, -1), position % CHUNK_SIZE
        routing = None if cache.routed_experts is None else Routing()
        for layer, layer_cache in zip(cast(list[DecoderLayer], self.layers), cache.layers, strict=True):
            x = layer.decode(x, layer_cache, slots, offset, table, position, routing)
        if routing is not None:
            cache.note_experts(table, position, routing.taken)
        cache.length += 1
        return self.norm(x)


@dataclass
class HybridOutput(CausalLMOutput):
    """Logits, or, where `logprobs_of` was given, log-probability and entropy `[B, n]` of those tokens instead.

    `state_values` `[B, n]` are a value head's, where there is one (model/value.py). `routed_otherwise`: how many of the
    given `routed_experts` the routers would not have chosen.
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    state_values: Tensor | None = None
    routed_otherwise: Tensor | None = None


class HybridForCausalLM(PreTrainedModel):
    """Kimi Linear language model over transformers' `KimiLinearConfig`, with the released checkpoint's weight names.

    With every layer "full_attention" in `config.layer_types` it is the all-attention baseline. As a `PreTrainedModel`
    it goes wherever a HuggingFace model goes (TRL, Accelerate, the Trainer); `from_pretrained` and `save_pretrained`
    read and write checkpoints that transformers' own KimiLinearForCausalLM reads and writes.
    """

    config: KimiLinearConfig
    config_class = KimiLinearConfig
    base_model_prefix = "model"
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012 (as the base class declares it)

    def __init__(self, config: KimiLinearConfig):
        super().__init__(config)
        self.model = HybridModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.generation_config = GenerationConfig.from_model_config(config)  # TRL's trainers write token ids to it
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding | Router):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            bound = 1 / math.sqrt(module.kernel_size[0])
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, RMSNorm | GatedNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, KDALayer):
            module.A_log.copy_(torch.empty_like(module.A_log).uniform_(1, 16).log())
            dt = torch.empty_like(module.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp_min(1e-4)
            module.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | Packing | None = None,
        logits_to_keep: Tensor | None = None,
        logprobs_of: Tensor | None = None,
        temperature: float = 1.0,
        keep_hidden: bool = False,
        routed_experts: Tensor | None = None,
        **unused: Any,
    ) -> HybridOutput:
        """Logits of whole sequences, or the log-probabilities of given tokens without them.

        Args:
            input_ids: `[B, T]` padded on any side, or `[1, T]` packed with `cu_seqlens`.
            attention_mask: `[B, T]`, 0 on padding, which is dropped before the first layer; its logits are those of
                a zero hidden state.
            labels: `[B, T]`, -100 where no loss is wanted; adds the mean next-token cross-entropy as `loss`.
            cu_seqlens: `[N+1]` bounds of packed sequences; or their packing, which is made on the host, for passes that
                are alike and must not wait for the device.
            logits_to_keep: `[n]` positions along T to compute logits for, all if None.
            logprobs_of: `[B, n]` a token for each of these positions; computes its log-probability and the entropy,
                in fp32, in memory that does not grow with the vocabulary. Excludes `labels`.
            temperature: that `logprobs_of` is computed at.
            keep_hidden: with `logprobs_of`, return what they were computed from too, as `hidden_states` `[B, n, D]`.
            routed_experts: `[T, layers, k]` experts for the tokens of packed sequences, as `Routing` takes them; the
                routers weight them by their scores.
            unused: arguments the HuggingFace trainers pass to every model (`use_cache`, `return_dict`, ...).
        """
        routing = None
        if routed_experts is not None:
            if routed_experts.shape != (wanted := (input_ids.numel(), *routing_shape(self.config))):
                raise ValueError(f"routed_experts must be {wanted}, got {tuple(routed_experts.shape)}")
            routing = Routing(routed_experts)
        hidden = self.model(input_ids, attention_mask, cu_seqlens, routing).last_hidden_state
        otherwise = None if routing is None else routing.otherwise
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        if logprobs_of is not None:
            if labels is not None:
                raise ValueError("labels need logits, which logprobs_of does without: pass one of them")
            if logprobs_of.shape != hidden.shape[:2]:
                raise ValueError(f"logprobs_of must be {tuple(hidden.shape[:2])}, got {tuple(logprobs_of.shape)}")
            logprobs, entropy = token_logprobs(
                hidden.flatten(0, 1), self.lm_head.weight, logprobs_of.flatten(), temperature
            )
            return HybridOutput(
                logprobs=logprobs.view_as(logprobs_of),
                entropy=entropy.view_as(logprobs_of),
                hidden_states=cast(Any, hidden if keep_hidden else None),
                routed_otherwise=otherwise,
            )
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **unused)
        return HybridOutput(loss=loss, logits=logits, routed_otherwise=otherwise)

    def new_cache(
        self, batch: int, max_len: int, num_pages: int | None = None, record_routing: bool = False
    ) -> HybridCache:
        """An empty decode cache for `batch` sequences of up to `max_len` tokens; see `HybridCache.allocate`."""
        weight = self.lm_head.weight
        return HybridCache.allocate(self.config, batch, max_len, weight.dtype, weight.device, num_pages, record_routing)

    @torch.no_grad()
    def prefill(self, ids: Tensor, packing: Packing, cache: HybridCache, rows: Tensor) -> Tensor:
        """Runs packed prompts (`[T]` ids) into cache rows; returns the logits `[N, vocab]` after each prompt.

        With `packing.start`, the next pieces of prompts whose rows hold what came before. Pieces must start at a
        multiple of the chunk size, `deltarl.kernels.chunk.CHUNK_SIZE`.
        """
        self.join_weights()
        hidden = self.model.packed(ids, packing, cache, rows)
        last = hidden[packing.cu_seqlens[1:] - 1]
        filled = F.pad(last, (0, 0, 0, max(0, MIN_ROWS - len(last))))
        return self.lm_head(filled)[: len(last)].float()

    @torch.no_grad()
    def decode(self, ids: Tensor, cache: HybridCache, longest: int | None = None) -> Tensor:
        """Feeds one token to every cache row (`[B]`); returns the next logits `[B, vocab]` in fp32.

        Args:
            longest: at least the length of every row; without it the device is waited for.
        """
        return self.lm_head(self.model.decode(ids, cache, longest)).float()

    @property
    def decodes_without_waiting(self) -> bool:
        """Whether a decode step asks the device nothing: the Triton kernels do not, a mixture of experts does."""
        config, weight = self.config, self.lm_head.weight
        dim = config.linear_head_dim
        return (
            weight.is_cuda
            and choose_backend(weight.device, weight.dtype, dim, dim) == "triton"
            and config.kv_lora_rank <= MAX_RANK
            and config.qk_rope_head_dim <= MAX_ROPE
            and "sparse" not in mlp_kinds(config)
        )

    def join_weights(self) -> None:
        """Has `decode` see weights that have changed. Every `prefill` does it."""
        for module in self.modules():
            if isinstance(module, KDALayer):
                module.join_weights()

    # These two are for our own folders alone, and take fewer arguments than those of the base class.
    @classmethod
    def from_pretrained(  # type: ignore[override]  # see above
        cls, path: str | PathLike[str], **kwargs: Any
    ) -> "HybridForCausalLM":
        """Reads a checkpoint folder; see `deltarl.model.checkpoint.load_model`."""
        from deltarl.model.checkpoint import load_model

        return load_model(path, **kwargs)

    def save_pretrained(  # type: ignore[override]  # likewise
        self, path: str | PathLike[str], state_dict: Mapping[str, Tensor] | None = None, **unused: Any
    ) -> None:
        """Writes a checkpoint folder; see `deltarl.model.checkpoint.save_model`."""
        from deltarl.model.checkpoint import save_model

        save_model(self, path, state_dict)
