"""A tiny run and a tiny policy for the tests of the run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deltarl.model.checkpoint import load_model, save_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.cli import load_config
from deltarl.rl.config import RunConfig

TINY = Path(__file__).parent / "tiny.yaml"
VOCAB = 24


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., RunConfig]:
    """`tiny("key=value", ...)`: the tiny recipe with overrides, its run folder below tmp_path."""
    return lambda *overrides: load_config(TINY, [f"output_dir={tmp_path / 'runs'}", *overrides])


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose next-token distribution is far from uniform, so that wrong numbers show."""
    torch.manual_seed(0)
    config = hybrid_config(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        full_attention_every=2,
        num_attention_heads=2,
        linear_num_heads=2,
        linear_head_dim=16,
        intermediate_size=64,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("policy") / "model"
    save_model(HybridForCausalLM(config), folder)
    return folder


@pytest.fixture(scope="session")
def bf16_folder(policy_folder: Path) -> Path:
    """The same policy stored in bf16."""
    folder = policy_folder.parent / "bf16"
    save_model(load_model(policy_folder, torch.bfloat16), folder)
    return folder
