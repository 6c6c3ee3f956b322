"""The switches of a critic. Free of torch, as rl/objectives/config.py is."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deltarl.rl.section import Section


class CriticConfig(Section):
    """The value model of PPO, learned beside the policy; used with learner.baseline = critic (algorithm=ppo)."""

    trunk: Literal["own", "shared"] = "own"
    """own: a second model, which starts as a copy of the policy. shared: a value head on the policy's trunk, which
    costs nothing and pulls on the policy."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(default=1.0, ge=0, le=1)
    """λ of GAE: 1 waits for the score, 0 believes the critic's next value; in between, less variance for more bias."""
    value_clip: PositiveFloat | None = 0.2
    """How far a value may move from what it was when the iteration started; null does not clip."""
    value_coef: PositiveFloat = 1.0
    """Weight of the value loss. A trunk of its own has Adam, which hardly notices; a shared one has the policy's."""
    learning_rate: PositiveFloat = 1e-3
    """Of the critic; of its head alone, if the trunk is shared."""
    warmup_steps: NonNegativeInt = 0
    """Updates of linear learning-rate warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    epochs: PositiveInt = 1
    """Passes over each batch; the policy makes one. More than one needs a trunk of its own."""
    warmup_updates: NonNegativeInt = 0
    """Steps at the start in which only the critic learns, from the starting policy's answers."""

    @model_validator(mode="after")
    def _shared_trunk_learns_once(self) -> "CriticConfig":
        if self.trunk == "shared" and self.epochs > 1:
            raise ValueError(
                f"learner.critic.epochs = {self.epochs} would move the policy too, whose trunk the critic shares; use "
                "trunk=own, or epochs=1"
            )
        return self
