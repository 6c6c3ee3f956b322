"""The supervised warm start."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from deltarl.rl.section import Section


class SFTConfig(Section):
    """The supervised warm start, on the solutions of the training problems; left out, RL starts from the model."""

    steps: PositiveInt = 100
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    warmup_steps: NonNegativeInt = 20
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    direct_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the demonstrations that give the boxed answer alone, without the steps that lead to it."""
    checkpoint_interval: int = Field(default=500, gt=0, multiple_of=10)
    """Steps between two checkpoints of the warm start, which a run that was cut short goes on from; a multiple of 10,
    the steps between two rows of its metrics. One has some 14 bytes a parameter; there are up to three at a time, until
    the warm start is done."""
