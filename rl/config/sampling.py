"""Which training problems come when. Free of torch and numpy, as the rest of the configuration is."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from deltarl.rl.section import Section


class SamplingConfig(Section):
    order: Literal["shuffle", "curriculum", "prioritised"] = "shuffle"
    """shuffle: each epoch in an order of its own. curriculum: the easiest problems first, by what the starting model
    solves of them, then more and more of the others. prioritised: problems that are solved half of the time are drawn
    most, by what the policy solved of them when they were last sampled."""
    measure_samples: NonNegativeInt = 0
    """Answers that the starting model gives to each training problem before the first step, to know how hard it is."""
    min_success: float = Field(default=0.0, ge=0, le=1)
    """Problems that the starting model solves less often than this are left out."""
    max_success: float = Field(default=1.0, ge=0, le=1)
    """Problems that it solves more often are left out."""
    curriculum_start: float = Field(default=0.1, gt=0, le=1)
    """Share of the problems that a curriculum begins with."""
    curriculum_steps: PositiveInt = 100
    """Steps after which it has reached all of them."""
    uniform_share: float = Field(default=0.2, gt=0, le=1)
    """prioritised: share of the draws that do not look at success, so that no problem is forgotten."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "SamplingConfig":
        filters = self.min_success > 0 or self.max_success < 1
        if (filters or self.order == "curriculum") and not self.measure_samples:
            what = "order = 'curriculum'" if self.order == "curriculum" else "min_success and max_success"
            raise ValueError(
                f"data.sampling.{what} must know what the starting model solves; set data.sampling.measure_samples, "
                "e.g. to 8"
            )
        if self.min_success > self.max_success:
            raise ValueError(
                f"data.sampling.min_success = {self.min_success} exceeds max_success = {self.max_success}: no problem "
                "is left"
            )
        return self
