"""What scores an answer."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from deltarl.rl.section import Section


class RewardFunctionConfig(Section):
    name: str
    """Name in the metrics: reward/{name}/mean."""
    function: str = "math"
    """`math`, the built-in verifier; or a plug-in: path/to/file.py:function, package.module:function, the name of a
    ready-made one (docs/REWARDS.md), or an entry point of an installed package in the group deltarl.rewards."""
    weight: float = 1.0
    args: dict[str, Any] = Field(default={})
    """Parameters of the plug-in, by name."""


class RewardConfig(Section):
    functions: list[RewardFunctionConfig] = Field(default=[RewardFunctionConfig(name="math")], min_length=1)
    marker: Literal["boxed", "####", "answer_tag", "the_answer_is", "any_marker", "anywhere"] = "boxed"
    """Where the answer stands in a completion."""
    timeout: PositiveFloat = 1.0
    """Processor seconds one verdict may take."""
    overlong_fraction: float = Field(default=0.0, ge=0, le=1)
    """Punish answers in the last part of rollout.max_tokens, of this share: the reward falls linearly by 1 (DAPO's soft
    overlong punishment, a reward function named overlong); 0 does not."""
    num_workers: PositiveInt = 1
    """Ray actors that score."""
    num_cpus: PositiveFloat = 0.25
    stuck_after: PositiveFloat = 3600.0
    """As rollout.stuck_after, of a worker that scores."""

    @model_validator(mode="after")
    def _distinct_names(self) -> "RewardConfig":
        names = [f.name for f in self.functions] + (["overlong"] if self.overlong_fraction else [])
        if len(set(names)) < len(names):
            raise ValueError(f"reward functions need distinct names, got {names}")
        return self
