"""LoRA through peft, computed so that the sampler's weights give the learner's numbers.

`x Wᵀ + x Aᵀ Bᵀ s` and `x (W + s B A)ᵀ` are the same function and round differently. The samplers get the merged matrix
W + s B A, as any other weights. The learner therefore merges too, in every pass and with a gradient, and computes with
the very matrix it publishes. (Our KDA layers also read the matrices of their projections rather than call them, so that
an adapter beside a projection would not be noticed.) The price is one more copy of the adapted matrices during a pass.
"""

import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from deltarl.model.hf_policy import HFPolicy
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.policy import Policy
from deltarl.rl.checkpoint import Write
from deltarl.rl.config.lora import LoRAConfig
from deltarl.rl.sharding import whole

KDA = ("q_proj", "k_proj", "v_proj", "o_proj", "f_a_proj", "f_b_proj", "a_proj", "g_a_proj", "g_b_proj", "b_proj")
MLA = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")  # beside q_proj and o_proj
FOLDER, TENSORS = "adapter", "adapter_model.safetensors"  # the second is peft's name
ADAPTER = "default"  # peft's name of the only one
SEED = 0  # of the first matrix's entries: the same on every rank, and whenever the run starts


class LoRAPolicy(nn.Module):
    """A policy whose adapters alone learn. To samplers and checkpoints it has the merged weights.

    Attributes:
        base: the policy without its adapters, on the same weights: the reference model of a KL.
    """

    def __init__(self, policy: Policy, config: LoRAConfig, base_path: str):
        """
        Args:
            base_path: where `policy` is from, for the adapter's own config.

        Raises:
            ValueError: `config.targets` names no projection of the policy.
        """
        super().__init__()
        from peft import LoraConfig, inject_adapter_in_model  # an extra of the installation

        self.policy, self._inner = policy, [policy.model if isinstance(policy, HFPolicy) else policy]
        self.config = policy.config
        hybrid = isinstance(policy, HybridForCausalLM)
        targets = config.targets or ([*KDA, *MLA] if hybrid else "all-linear")
        self.peft_config = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets)
        self.peft_config.base_model_name_or_path = base_path
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            inject_adapter_in_model(self.peft_config, self._inner[0], ADAPTER)  # all else no longer learns
        for _, layer in self._adapted():
            layer.enable_adapters(False)  # it would add them to what is merged already
            for matrix in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
                matrix.float().requires_grad_(True)
        self.base = _Base(policy)

    def forward(self, **inputs: Any) -> Any:
        """What the policy with the merged weights returns."""
        prefix = "model." if isinstance(self.policy, HFPolicy) else ""
        merged = {f"{prefix}{name}.base_layer.weight": _merged(layer) for name, layer in self._adapted()}
        return functional_call(self.policy, merged, (), inputs)

    @torch.no_grad()
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The merged weights, under the names they have without adapters."""
        merged = {f"{name}.weight": _merged(layer) for name, layer in self._adapted()}
        state = {name.replace(".base_layer.", "."): x for name, x in self._inner[0].state_dict().items()}
        return {name: merged.get(name, x) for name, x in state.items() if ".lora_" not in name}

    def save_pretrained(self, path: str | PathLike[str], state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Writes the merged model."""
        self.policy.save_pretrained(path, state_dict=self.state_dict() if state_dict is None else state_dict)

    def adapter_snapshot(self) -> Write:
        """A copy of the adapter, to be written in peft's format into a folder of the checkpoint."""
        matrices = whole(dict(self._matrices()), keep=True, copy=True)

        def write(folder: Path) -> None:
            (folder / FOLDER).mkdir()
            self.peft_config.save_pretrained(str(folder / FOLDER))
            save_file(matrices, folder / FOLDER / TENSORS)

        return write

    @torch.no_grad()
    def load_adapter(self, path: str | PathLike[str]) -> None:
        """Restores the adapter of a checkpoint; the rest is as the run started from it.

        Raises:
            ValueError: an adapter of other projections or of another rank.
        """
        found, own = load_file(Path(path) / FOLDER / TENSORS), dict(self._matrices())
        if {name: x.shape for name, x in found.items()} != {name: x.shape for name, x in own.items()}:
            config = json.loads((Path(path) / FOLDER / "adapter_config.json").read_text())
            raise ValueError(
                f"the adapter in {path} has rank {config['r']} and targets {config['target_modules']}, not those of "
                "learner.lora"
            )
        for name, x in own.items():
            x.copy_(found[name])

    def _adapted(self) -> Iterator[tuple[str, Any]]:
        from peft.tuners.lora import LoraLayer

        return ((name, m) for name, m in self._inner[0].named_modules() if isinstance(m, LoraLayer))

    def _matrices(self) -> Iterator[tuple[str, Tensor]]:
        """A and B of every adapter, under peft's names."""
        for name, layer in self._adapted():
            yield f"base_model.model.{name}.lora_A.weight", layer.lora_A[ADAPTER].weight
            yield f"base_model.model.{name}.lora_B.weight", layer.lora_B[ADAPTER].weight


class _Base(nn.Module):
    """The policy as it is without its adapters, which holds no parameters of its own."""

    def __init__(self, policy: Policy):
        super().__init__()
        self._policy = [policy]  # not as a submodule, whose parameters there would be twice

    def forward(self, **inputs: Any) -> Any:
        return self._policy[0](**inputs)


def _merged(layer: Any) -> Tensor:
    """W + s B A, added in fp32 and rounded once."""
    weight = layer.base_layer.weight
    return (weight.float() + layer.get_delta_weight(ADAPTER)).to(weight.dtype)


def adapter_parameters(model: nn.Module, config: LoRAConfig) -> tuple[int, int]:
    """How many parameters the adapters would have, and how many the matrices they adapt."""
    hybrid = isinstance(model, HybridForCausalLM)
    targets = tuple(config.targets or ([*KDA, *MLA] if hybrid else ()))
    adapters = adapted = 0
    for name, m in model.named_modules():
        chosen = name.split(".")[-1] in targets if targets else name.split(".")[-1] != "lm_head"
        if isinstance(m, nn.Linear) and chosen:
            adapters += config.rank * (m.in_features + m.out_features)
            adapted += m.weight.numel()
    return adapters, adapted
