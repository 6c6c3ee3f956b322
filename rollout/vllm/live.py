"""Weights that change under a running vLLM, and the proof that they arrived. Imported in vLLM's process only.

On a CPU, vLLM packs weights for its kernels while it loads them. What it offers for updates then goes wrong without a
word: tied embeddings keep the old output layer, experts the old packed matrices. So nothing is packed here
(`keep_weights_unpacked`), an update is written into the very tensors that are computed with, and these are read back.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarl.model.weights import WeightMismatchError

_MIX = (-7046029254386353131, -4658895280553007687)  # odd 64-bit constants of SplitMix64
_PIECE = 1 << 22  # elements hashed at once


def keep_weights_unpacked() -> None:
    """Before a model is loaded on a CPU: plain matrix products with the checkpoint's own layout of weights."""
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    pack = utils.dispatch_cpu_unquantized_gemm

    def leave(layer: Any, remove_weight: bool) -> None:
        if layer.weight.ndim == 2:
            layer.cpu_linear = F.linear
        else:
            pack(layer, remove_weight)  # of a convolution; an update of a packed one fails the reading back

    utils.dispatch_cpu_unquantized_gemm = leave
    CPUUnquantizedExperts.process_weights_after_loading = lambda self, layer: None
    CPUUnquantizedExperts._supports_grouped_gemm = classmethod(lambda cls, config: (True, None))
    CPUUnquantizedExperts.apply = _experts


def _experts(
    self: Any,
    *,
    output: Tensor,
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: Any,
    apply_router_weight_on_input: bool,
    **others: Any,
) -> None:
    """The experts of each token, `[T, D]`, one expert after the other; gate and up stand in `w1` above each other."""
    gates: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }
    if activation.value not in gates:
        raise NotImplementedError(f"experts with activation {activation.value!r} on a CPU")
    output.zero_()
    bias1, bias2 = ([None] * len(w1) if bias is None else bias for bias in (self.w1_bias, self.w2_bias))
    for expert in topk_ids.unique().tolist():
        token, rank = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = F.linear(hidden_states[token], w1[expert], bias1[expert]).chunk(2, -1)
        mixed = F.linear(gates[activation.value](gate) * up, w2[expert], bias2[expert])
        if not apply_router_weight_on_input:
            mixed = mixed * topk_weights[token, rank, None]
        output.index_add_(0, token, mixed.to(output.dtype))


def element_digest(tensors: Iterable[Tensor]) -> int:
    """Sum of a hash of every non-zero element's fp32 value: blind to order and shape, to nothing else.

    vLLM joins and pads the checkpoint's matrices, which moves elements and adds zeros but changes none. So the digest
    of what was sent equals that of what the model holds if, and but for chance only if, every element arrived there
    once and unrounded. Where it went is the loader's business, which is the one that the checkpoint was loaded by.
    """
    total = 0
    for x in tensors:
        for piece in x.detach().flatten().split(_PIECE):
            bits = piece.float().contiguous().view(torch.int32).to(torch.int64)
            for factor in _MIX:
                bits = bits * factor
                bits = bits ^ ((bits >> 29) & 0x7FFFFFFFF)  # zero stays zero: padding does not count
            total += int(bits.sum())
    return total % (1 << 64)


def checkpoint_shapes(model: nn.Module, model_config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors the model was loaded from, which an update must have too."""
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    loader = DefaultModelLoader(LoadConfig(use_tqdm_on_load=False))
    return {name: tuple(x.shape) for name, x in loader.get_all_weights(model_config, model)}


def without_tied_copy(tensors: Mapping[str, Tensor], expected: Mapping[str, Any], config: Any) -> dict[str, Tensor]:
    """`tensors` less a `lm_head.weight` that only repeats the embeddings of a model with tied ones."""
    kept, head = dict(tensors), "lm_head.weight"
    if head in kept and head not in expected and getattr(config, "tie_word_embeddings", False):
        embeddings = [x for name, x in kept.items() if name.endswith("embed_tokens.weight")]
        if len(embeddings) != 1 or not torch.equal(kept.pop(head), embeddings[0]):
            raise WeightMismatchError("the model ties lm_head to its embeddings, but the update has two different ones")
    return kept


def check_names(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `WeightMismatchError` unless `tensors` have the names and shapes of the checkpoint."""
    differ = sorted(tensors.keys() ^ expected.keys())
    if differ:
        raise WeightMismatchError(
            f"the update and the checkpoint differ in {', '.join(differ[:5])} ({len(differ)} names in all); publish "
            "tensors under the checkpoint's names (a model of transformers: backend.checkpoint_update)"
        )
    for name, x in tensors.items():
        if tuple(x.shape) != expected[name]:
            raise WeightMismatchError(f"{name}: got shape {tuple(x.shape)}, the checkpoint has {expected[name]}")


def load(model: Any, model_config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Writes checkpoint tensors into the running model and verifies what arrived there.

    Raises:
        WeightMismatchError: what the model holds afterwards is not what was sent. The model is not to be used then.
    """
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    with torch.no_grad():
        loaded = model.load_weights(iter(tensors.items()))
        # What is computed from weights ahead of time, such as the halves of an MLA layer's kv_b_proj.
        process_weights_after_loading(model, model_config, next(model.parameters()).device)
    parameters = dict(model.named_parameters())
    held = {parameters[name].data_ptr(): parameters[name] for name in loaded if name in parameters}
    if element_digest(held.values()) != element_digest(tensors.values()):
        raise WeightMismatchError("the weights read back from vLLM's model are not those sent to it")
