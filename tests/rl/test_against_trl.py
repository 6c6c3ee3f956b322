"""Loss and gradient of a batch equal TRL's, where TRL has the objective: its `_compute_loss` on the same numbers."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from objective_cases import ANSWERS, LENGTHS, arrays, tokens
from trl import GRPOTrainer, RLOOTrainer

from deltarl.rl.loss import token_loss
from deltarl.rl.objectives.aggregation import divisor, token_weights
from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.presets import PRESETS

MAX_TOKENS = 20
BETA = 0.1
SEQUENCE_RANGES = {"epsilon": 0.04, "epsilon_high": 0.05}  # those of GSPO would clip nearly every answer here

# What is set here beyond the preset, and what the same is called in TRL.
CASES = {
    "dapo": ({}, {"loss_type": "dapo"}),
    "dapo with KL": ({"beta": BETA}, {"loss_type": "dapo"}),
    "dapo with unbiased KL": (
        {"beta": BETA, "kl_estimator": "unbiased", "sampler is old": True},
        {"loss_type": "dapo", "use_bias_correction_kl": True},
    ),
    "dapo with dual clip": ({"dual_clip": 1.4}, {"loss_type": "dapo", "delta": 1.4}),
    "grpo as published": ({"aggregation": "sequence_mean", "epsilon_high": 0.2, "beta": BETA}, {"loss_type": "grpo"}),
    "dr_grpo": ({}, {"loss_type": "dr_grpo"}),
    "gspo": (SEQUENCE_RANGES, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "cispo": ({}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    **{
        f"dapo with {kind}": ({"correction": kind, "correction_bounds": (0.0, 1.3)}, {"loss_type": "dapo"})
        for kind in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
}


def padded(x: np.ndarray) -> torch.Tensor:
    rows = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.double)
    for i, s in enumerate(ANSWERS):
        rows[i, : LENGTHS[i]] = torch.tensor(x[s])
    return rows


def trl_loss(trainer: type, a: dict[str, np.ndarray], config: ObjectiveConfig, **settings) -> tuple[float, np.ndarray]:
    """TRL's loss, and its gradient for each token's log-probability."""
    logprobs = padded(a["new"]).requires_grad_()
    mask = torch.tensor([[float(t < n) for t in range(max(LENGTHS))] for n in LENGTHS]).double()
    same = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    args = {"delta": None, "use_bias_correction_kl": False} | settings
    fake = SimpleNamespace(
        **{
            "epsilon_low": config.epsilon,
            "epsilon_high": config.epsilon_high,
            "importance_sampling_level": "token",
            "loss_type": "grpo",
            **settings,
        },
        beta=config.beta,
        args=SimpleNamespace(**args),
        accelerator=same,
        model=SimpleNamespace(training=True),
        max_completion_length=MAX_TOKENS,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        use_vllm=config.correction != "none",
        vllm_importance_sampling_correction=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *unused, **kwargs: (logprobs, torch.zeros_like(logprobs), None),
    )
    fake.args.steps_per_generation = 1
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1),
        "prompt_mask": torch.ones(len(LENGTHS), 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": torch.tensor(np.array([a["advantages"][s.start] for s in ANSWERS])),
        "old_per_token_logps": padded(a["old"]),
        "old_logps": padded(a["old"]).sum(1),
        "ref_per_token_logps": padded(a["ref"]),
        "num_items_in_batch": mask.sum(),
    }
    if config.correction != "none":
        inputs["importance_sampling_ratio"] = trl_weights(a, config, mask)
    loss = trainer._compute_loss(fake, None, inputs)
    loss.backward()
    return float(loss.detach()), logprobs.grad[mask.bool()].numpy()


def trl_weights(a: dict[str, np.ndarray], config: ObjectiveConfig, mask: torch.Tensor) -> torch.Tensor:
    """As `_generate_and_score_completions` makes them, inseparable there from generation."""
    x, bound = padded(a["old"]) - padded(a["sampler"]), config.correction_bounds[1]
    level, action = config.correction.split("_")
    ratio = torch.exp((x * mask).sum(-1, keepdim=True) if level == "sequence" else x * mask)
    return ratio.clamp(max=bound) if action == "truncate" else ratio.masked_fill(ratio > bound, 0.0)


def our_loss(a: dict[str, np.ndarray], config: ObjectiveConfig) -> tuple[float, np.ndarray]:
    x = tokens(a)
    out = token_loss(x, config, torch.tensor(a["ref"]) if config.beta else None, config.beta)
    weights = token_weights(config.aggregation, x.lengths)
    total = out.loss if weights is None else out.loss * weights
    loss = total.sum() / divisor(config.aggregation, sum(LENGTHS), len(LENGTHS), MAX_TOKENS)
    loss.backward()
    return float(loss.detach()), x.logprobs.grad.numpy()


@pytest.mark.parametrize("name", CASES)
def test_grpo_trainer(name):
    changes, theirs = CASES[name]
    changes, a = dict(changes), arrays()
    if changes.pop("sampler is old", False):  # TRL takes the ratio to the old policy for that to the sampler
        a["sampler"] = a["old"]
    config = ObjectiveConfig(**(PRESETS.get(name.split()[0], {}).get("learner", {}) | changes))
    loss, gradient = our_loss(a, config)
    expected, expected_gradient = trl_loss(GRPOTrainer, a, config, **theirs)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_rloo_trainer(spread):
    a, config = arrays(spread), ObjectiveConfig(**PRESETS["rloo"]["learner"])
    loss, gradient = our_loss(a, config)
    expected, expected_gradient = trl_loss(RLOOTrainer, a, config)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-9)
