"""A learner in bf16 on a GPU gives the same bits each time."""

import numpy as np
import pytest
import torch

from deltarl.model.checkpoint import round_weights, save_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

VOCAB = 256


@pytest.mark.parametrize("num_experts", [0, 4])
def test_two_learners_of_the_same_start_stay_equal_bit_for_bit(tmp_path, num_experts):
    torch.manual_seed(0)
    config = hybrid_config(
        vocab_size=VOCAB,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        linear_num_heads=4,
        linear_head_dim=64,
        intermediate_size=512,
        kv_lora_rank=64,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        num_experts=num_experts,
        moe_intermediate_size=128,
        max_position_embeddings=2048,
    )
    save_model(round_weights(HybridForCausalLM(config), torch.bfloat16), tmp_path)
    rng = np.random.default_rng(0)
    samples = [
        # Long enough for several blocks of keys to add to the gradient of a query.
        TrainSample.whole(*(rng.integers(3, VOCAB, n).tolist() for n in (30, m)), [-5.0] * m, float(rng.normal()))
        for m in rng.integers(500, 1500, 12).tolist()
    ]
    states = []
    for _ in range(2):
        learner = Learner(LearnerConfig(learning_rate=1e-3, warmup_steps=0), str(tmp_path), 10, 1.0)
        for _ in range(4):
            learner.update(split_batch(samples, 1, 1)[0])
        states.append({name: x.clone() for name, x in learner.model.state_dict().items()})
    differ = [name for name, x in states[0].items() if not torch.equal(x, states[1][name])]
    assert not differ
