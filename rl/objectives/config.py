"""The switches of an objective. Free of torch, so that a mistake in a recipe is told at once."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deltarl.rl.advantages import Baseline, ScaleRewards
from deltarl.rl.section import Section

Level = Literal["token", "sequence", "product"]
Aggregation = Literal["token_mean", "sequence_mean", "constant"]
KLEstimator = Literal["k1", "k2", "k3", "k3_straight_through", "unbiased"]
Correction = Literal[
    "none",
    "token_truncate",
    "token_mask",
    "sequence_truncate",
    "sequence_mask",
    "geometric_truncate",
    "geometric_mask",
]

# The clip ranges of a ratio that is a mean over an answer's tokens are some 1000 times those of a token's.
LARGEST_SEQUENCE_EPSILON = 0.05

LOSSES = tuple(sorted(f.stem for f in (Path(__file__).parent / "losses").glob("[a-z]*.py")))
"""Names of the surrogate losses: the files in losses/."""


class ObjectiveConfig(Section):
    loss_type: str = "clip"
    """Surrogate loss, a file in rl/objectives/losses: clip (PPO, GRPO, GSPO), cispo, or mirror_descent (Kimi k1.5)."""
    importance_sampling_level: Level = "token"
    """What the ratio of new to old policy is of: a token; sequence, the geometric mean over an answer's tokens (GSPO);
    or product, the whole answer (RLOO)."""
    epsilon: PositiveFloat = 0.2
    """Clip range below 1."""
    epsilon_high: PositiveFloat = 0.28
    """Clip range above 1 (DAPO's clip-higher)."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of a negative advantage at this many times the advantage, however large the ratio; e.g. 3."""
    tau: PositiveFloat = 0.1
    """mirror_descent: weight of the squared log-ratio, which holds the policy to the one the iteration started with."""
    baseline: Baseline = "group"
    """What is taken from a score: the group's mean, the mean of the group's other samples (RLOO), nothing, or what a
    critic expected at each token (PPO; rl/config/critic.py)."""
    scale_rewards: ScaleRewards = "group"
    """Divide advantages by the standard deviation of the group's or the batch's scores, or by nothing; whiten brings
    the advantages of the whole batch to mean 0 and standard deviation 1 (REINFORCE++)."""
    aggregation: Aggregation = "token_mean"
    """The loss is a mean over the tokens of the whole batch, a mean over answers of their means, or the sum over tokens
    divided by the number of answers times rollout.max_tokens (Dr. GRPO)."""
    beta: NonNegativeFloat = 0.0
    """Weight of the KL to the reference model, which is the one RL started from; loaded only above 0."""
    kl_estimator: KLEstimator = "k3"
    """k1, k2, k3; k3_straight_through, with the value of k3 and the gradient of k2, which is that of the KL; or
    unbiased, k3 times the ratio to the sampling policy."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Add the penalty to the loss, or take an answer's whole KL off its reward."""
    kl_target: PositiveFloat | None = None
    """Adapts beta so that the KL per token comes to this; null keeps beta."""
    kl_horizon: PositiveInt = 100
    """Steps over which beta adapts; within so many, it can change by a factor of about 1.2."""
    min_entropy: NonNegativeFloat = 0.0
    """While the mean entropy of a token is below this, in nats, each step makes one optimizer step fewer than the one
    before, down to 1; above it one more, up to num_minibatches. 0 keeps their number."""
    reference_interval: NonNegativeInt = 0
    """Steps after which the policy becomes the new reference model, again and again; 0 keeps the first."""
    correction: Correction = "none"
    """Importance weights from the sampling policy to the one the iteration starts with: none takes the two for one;
    *_truncate caps them, *_mask drops what is out of bounds; of tokens, whole answers (sequence: the product over
    tokens), or their geometric means."""
    correction_bounds: tuple[NonNegativeFloat, PositiveFloat] | None = None
    """Smallest and largest weight; null is what is usual for the kind of correction (docs/OBJECTIVES.md)."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "ObjectiveConfig":
        for problem in (*self._loss_problems(), *self._kl_problems()):
            raise ValueError(problem)
        if self.correction_bounds and not self.correction_bounds[0] <= 1 <= self.correction_bounds[1]:
            raise ValueError(
                f"learner.correction_bounds = {list(self.correction_bounds)} must enclose 1, the weight of an answer "
                "on which both policies agree"
            )
        return self

    def _loss_problems(self) -> list[str]:
        problems = []
        if self.loss_type not in LOSSES:
            problems.append(f"learner.loss_type = {self.loss_type!r} is none of {', '.join(LOSSES)}")
        if self.loss_type == "clip" and self.importance_sampling_level == "sequence":
            widest = max(self.epsilon, self.epsilon_high)
            if widest > LARGEST_SEQUENCE_EPSILON:
                problems.append(
                    f"learner.epsilon = {self.epsilon} and epsilon_high = {self.epsilon_high} are clip ranges for "
                    "tokens; with importance_sampling_level = 'sequence' the ratio is a mean over an answer's tokens "
                    "and would never be clipped: take epsilon=3e-4 epsilon_high=4e-4, as algorithm=gspo does"
                )
        if self.dual_clip is not None and self.loss_type != "clip":
            problems.append(
                f"learner.dual_clip = {self.dual_clip} belongs to loss_type = 'clip', not to {self.loss_type!r}; leave "
                "it out"
            )
        if self.baseline == "none" and self.scale_rewards == "group":
            problems.append(
                "learner.scale_rewards = 'group' divides by the spread around a group's mean, which baseline = 'none' "
                "does not take off; use scale_rewards=whiten, or baseline=group"
            )
        if self.baseline == "critic" and self.scale_rewards in ("group", "batch"):
            problems.append(
                f"learner.scale_rewards = {self.scale_rewards!r} divides the scores of answers, and a critic judges "
                "tokens; use scale_rewards=whiten, as algorithm=ppo does, or none"
            )
        if self.baseline == "critic" and self.loss_type == "mirror_descent":
            problems.append(
                "learner.loss_type = 'mirror_descent' takes one advantage for a whole answer, and a critic gives each "
                "token its own; use loss_type=clip or cispo"
            )
        return problems

    def _kl_problems(self) -> list[str]:
        problems = []
        if self.beta and self.kl_in == "loss" and self.kl_estimator == "k1":
            problems.append(
                "learner.kl_estimator = 'k1' in the loss has an expected gradient of zero, so it would hold nothing; "
                "use k2, k3, k3_straight_through or unbiased, or kl_in=reward"
            )
        if self.beta and self.kl_in == "reward" and self.kl_estimator in ("k3_straight_through", "unbiased"):
            problems.append(
                f"learner.kl_estimator = {self.kl_estimator!r} differs from k3 in its gradient, and a reward has none; "
                "use k1 or k3 with kl_in=reward"
            )
        for key in ("kl_target", "reference_interval"):
            if getattr(self, key) and not self.beta:
                problems.append(
                    f"learner.{key} = {getattr(self, key)} needs a reference model, and with beta = 0 there is none; "
                    f"set learner.beta, or leave {key} out"
                )
        return problems
