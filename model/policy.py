"""What can be trained: our hybrid, or any causal language model of transformers."""

from os import PathLike

from transformers import PreTrainedConfig, PreTrainedModel

from deltarl.model.checkpoint import load_model
from deltarl.model.hf_policy import HFPolicy, load_causal_lm
from deltarl.model.hybrid import HybridForCausalLM

Policy = HybridForCausalLM | HFPolicy


def is_hybrid(path: str | PathLike[str]) -> bool:
    """Whether a checkpoint folder holds our hybrid (or the all-attention baseline), which the native engine samples."""
    config, _ = PreTrainedConfig.get_config_dict(path)
    return bool(config.get("model_type") == "kimi_linear")


def load_trainable(path: str | PathLike[str]) -> PreTrainedModel:
    """The model of a checkpoint folder as the trainers of HuggingFace's libraries take it."""
    return load_model(path) if is_hybrid(path) else load_causal_lm(path)


def load_policy(path: str | PathLike[str]) -> Policy:
    """The model of a checkpoint folder as the learner takes it.

    Raises:
        FileNotFoundError, OSError, ValueError: no such checkpoint, or weights that do not fit its config.
    """
    return load_model(path) if is_hybrid(path) else HFPolicy(load_causal_lm(path))


def checkpoint_activations(policy: Policy) -> None:
    """Has `policy` keep each layer's input alone for the backward pass, which computes the layer again."""
    if isinstance(policy, HybridForCausalLM):
        policy.model.activation_checkpointing = True
    else:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})


def uses_every_parameter(policy: Policy) -> bool:
    """Whether a forward pass is sure to; of models that are not ours nothing is known."""
    return isinstance(policy, HybridForCausalLM)
