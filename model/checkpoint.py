"""Checkpoint folders: config.json and safetensors under the names of the released Kimi-Linear weights."""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import KimiLinearConfig

from deltarl.model.config import mlp_kinds
from deltarl.model.hybrid import HybridForCausalLM

# Small, and what the decay is computed from: rounding them to bf16 changes the policy.
KEEP_FP32 = ("A_log", "dt_bias", "e_score_correction_bias")


def save_model(
    model: HybridForCausalLM, path: str | PathLike[str], state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Writes `config.json` and (sharded) safetensors. transformers' KimiLinearForCausalLM loads the folder as it is.

    Args:
        state_dict: the whole weights, where `model` holds a shard of them or others.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["KimiLinearForCausalLM"]
    weights = dict(model.state_dict() if state_dict is None else state_dict)
    model.config.dtype = weights["lm_head.weight"].dtype  # the model may hold them in another
    model.config.save_pretrained(folder)
    save_torch_state_dict(weights, folder)


def load_model(path: str | PathLike[str], dtype: torch.dtype | None = None) -> HybridForCausalLM:
    """Reads a checkpoint folder written by us, by transformers, or released by Moonshot.

    Args:
        path: folder with `config.json` and `*.safetensors`.
        dtype: of the weights; as stored if None. `A_log`, `dt_bias` and the router bias are fp32, whatever is stored.

    Raises:
        FileNotFoundError: no such folder, config or weights.
        ValueError: not a `kimi_linear` checkpoint, or weights that are missing, extra or of another shape.
    """
    folder = Path(path)
    files = sorted(folder.glob("model*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise FileNotFoundError(
            f"{folder} is not a checkpoint: it needs config.json and at least one .safetensors file"
        )
    config_dict, _ = KimiLinearConfig.get_config_dict(folder)
    if config_dict.get("model_type") != "kimi_linear":
        raise ValueError(f"{folder} holds a {config_dict.get('model_type')!r} model; only kimi_linear can be loaded")
    config = KimiLinearConfig.from_dict(config_dict)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(load_file(file))
    weights = {_released_name(name, config): x for name, x in weights.items()}
    weights = {name: x.float() if name.endswith(KEEP_FP32) else x.to(dtype or x.dtype) for name, x in weights.items()}
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    _check(model, weights, folder)
    model.load_state_dict(weights, assign=True)
    return model


def round_weights(model: HybridForCausalLM, dtype: torch.dtype) -> HybridForCausalLM:
    """The model with its weights in `dtype`, but for those that a checkpoint holds in fp32."""
    for name, p in model.named_parameters():
        if not name.endswith(KEEP_FP32):
            p.data = p.data.to(dtype)
    return model


def _released_name(name: str, config: KimiLinearConfig) -> str:
    """transformers writes the dense layers of a mixture-of-experts model under `block_sparse_moe`; undo that."""
    match = re.match(r"model\.layers\.(\d+)\.block_sparse_moe\.", name)
    if match and mlp_kinds(config)[int(match[1])] == "dense":
        return name.replace(".block_sparse_moe.", ".mlp.")
    return name


def _check(model: HybridForCausalLM, weights: dict[str, Tensor], folder: Path) -> None:
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, the config needs {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"weights in {folder} do not fit its config: {'; '.join(problems[:5])}{more}")
