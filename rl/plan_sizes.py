"""Bytes, tokens and parameters of a run's parts, worked out from a model without weights."""

from typing import Any

from transformers import PreTrainedModel

from deltarl.model.cache import HybridCache
from deltarl.model.hybrid import DecoderLayer, HybridForCausalLM
from deltarl.model.mla_layer import MLALayer
from deltarl.model.routing import routing_shape
from deltarl.rl.config import RunConfig
from deltarl.rl.lora import adapter_parameters
from deltarl.rl.muon import hidden_matrices
from deltarl.rl.sharding import sharded_layers
from deltarl.rl.transport import choose_transport

GIB = 2**30


def longest(config: RunConfig) -> int:
    """Tokens of the longest prompt and answer."""
    return config.data.max_prompt_tokens + config.rollout.max_tokens


def sequences_at_once(config: RunConfig) -> int:
    """Answers that a rollout worker decodes at once."""
    rollout = config.rollout
    share = -(-rollout.prompts_per_step // rollout.num_workers) * rollout.num_generations
    return min(rollout.max_num_seqs, share)


def stored_bytes(model: PreTrainedModel) -> int:
    """Of the weights as a checkpoint and a sampler have them."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def sequence_bytes(config: RunConfig, model: HybridForCausalLM) -> int:
    """States and latents of one sequence of full length in our engine."""
    recorded = config.learner.router_replay and any(routing_shape(model.config))
    cache: HybridCache = model.new_cache(1, longest(config), record_routing=recorded)
    return cache.bytes_per_sequence(longest(config))


def active_parameters(model: PreTrainedModel) -> int:
    """Parameters that a token is multiplied with: all but the embedding, of routed experts its share."""
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    chosen, there = _experts(model)
    return model.num_parameters() - _embedding(model) - experts + experts * chosen // max(1, there)


def read_by_decoding(model: PreTrainedModel, sequences: int) -> int:
    """Bytes of weights read to decode a token of so many sequences at once: of n experts, of which each token goes to k
    as if by chance, n (1 - (1 - k/n)^sequences) are needed."""
    experts = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if ".experts." in name)
    chosen, there = _experts(model)
    hit = 1 - (1 - chosen / there) ** sequences if there else 0.0
    embedding = _embedding(model) * stored_bytes(model) // model.num_parameters()
    return int(stored_bytes(model) - embedding - experts * (1 - hit))


def learner_passes(config: RunConfig) -> float:
    """Passes of the learner over a batch; a forward pass is 1, a forward and backward pass 3."""
    learner = config.learner
    passes = 3.0 + (1.0 if learner.beta else 0.0)
    if learner.baseline == "critic":
        passes += (1.0 + 3.0 * learner.critic.epochs) if learner.critic.trunk == "own" else 1.0
    return passes


def learner_parts(config: RunConfig, model: PreTrainedModel) -> dict[str, int]:
    """Bytes of what a rank holds, by name, without activations."""
    weights = stored_bytes(model)
    learned = 4 * model.num_parameters()  # in fp32, whatever is stored
    fixed = weights if isinstance(model, HybridForCausalLM) else learned  # HFPolicy is always in fp32
    parts = {"weights": learned, "gradient": learned} | _optimizer_bytes(config, model, learned)
    if config.learner.lora is not None:
        adapters, adapted = adapter_parameters(model, config.learner.lora)
        merged = adapted * fixed // model.num_parameters()
        parts = {"weights": fixed, "merged matrices": merged, "adapters with gradient and AdamW": 16 * adapters}
    elif config.learner.beta:
        parts["reference model"] = fixed
    if config.learner.lora is None and fixed < learned and config.learner.sharding == "none":
        parts["rounded weights"] = fixed
    if config.learner.baseline == "critic" and config.learner.critic.trunk == "own":
        parts["critic with gradient and AdamW"] = 4 * learned
    if config.learner.sharding != "none":
        # What a rank needs whole at a time: the largest layer, or what is in none, weights and gradient.
        parts = {name: size // config.learner.num_ranks for name, size in parts.items()}
        parts[LAYER] = 2 * 4 * _largest_unit(model)
    elif config.rollout.max_staleness and choose_transport(config)[0] != "object_store":
        # The learner goes on while samplers are behind; those that start later fetch the last that all have.
        versions = 1 + config.rollout.max_staleness
        parts[f"{versions} versions for samplers"] = versions * weights
    return parts


def staged_bytes(config: RunConfig, model: PreTrainedModel) -> int:
    """Of the version that a sampler fetches while it samples (`deltarl.rollout.fetched.Staging`)."""
    beside = config.rollout.in_flight != "none" and choose_transport(config)[0] == "collective"
    return stored_bytes(model) if beside else 0


LAYER = "one layer put together"


def activation_bytes(config: RunConfig, model: HybridForCausalLM) -> int:
    """Of a micro-batch, by counting what the backward pass of each layer needs: an estimate, kernels may differ.

    With activation checkpointing the inputs of all layers, and the inside of one.
    """
    c: Any = model.config
    size = 2 if stored_bytes(model) < 4 * model.num_parameters() else 4
    layers = [_inside(layer, c) for layer in model.model.layers if isinstance(layer, DecoderLayer)]
    kept = c.num_hidden_layers * c.hidden_size
    inside = max(layers) if config.learner.activation_checkpointing else sum(layers)
    return size * config.learner.max_tokens_per_micro_batch * (kept + inside)


def _inside(layer: DecoderLayer, c: Any) -> int:
    """Numbers a token that the backward pass of a layer needs: what goes into each product, norm and kernel."""
    mixer = layer.self_attn
    if isinstance(mixer, MLALayer):
        heads, keys = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        inside = heads * (2 * keys + 2 * c.v_head_dim) + c.kv_lora_rank
    else:
        # q, k and v before and after the convolution, their normalised q and k, decay in fp32, output, gate, product.
        inside = (3 + 3 + 2 + 2 + 3) * mixer.o_proj.in_features
    if hasattr(layer, "mlp"):
        fed = 3 * c.intermediate_size
    else:
        fed = ((c.num_experts_per_tok or 0) + 1) * (3 * c.moe_intermediate_size + 2 * c.hidden_size)
    return inside + fed + 4 * c.hidden_size


def _embedding(model: PreTrainedModel) -> int:
    """Parameters of the table that tokens are looked up in, unless it is the output matrix too."""
    config = model.config
    return 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size


def _experts(model: PreTrainedModel) -> tuple[int, int]:
    """Experts that a token goes to, and experts there are, of a layer."""
    there = getattr(model.config, "num_local_experts", None) or 0
    if not isinstance(model, HybridForCausalLM) or not any(routing_shape(model.config)):
        return 0, 0
    return model.config.num_experts_per_tok or 0, there


def _optimizer_bytes(config: RunConfig, model: PreTrainedModel, learned: int) -> dict[str, int]:
    """Of the policy's optimizer: two moments of every weight, or one of those that are Muon's."""
    if config.learner.optimizer == "adamw":
        return {"AdamW": 2 * learned}
    names = hidden_matrices(model)
    share = sum(p.numel() for name, p in model.named_parameters() if name in names) / model.num_parameters()
    return {"Muon": int(share * learned), "AdamW": int(2 * (1 - share) * learned)}


def _largest_unit(model: PreTrainedModel) -> int:
    """Parameters of the largest part that sharded ranks put together at once."""
    layers = [sum(p.numel() for p in m.parameters()) for m in sharded_layers(model)]
    return max([model.num_parameters() - sum(layers), *layers])
