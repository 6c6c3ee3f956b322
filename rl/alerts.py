"""What goes wrong quietly: conditions on the metrics that deserve a look, and where to look."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from deltarl.rl.section import Section


class AlertConfig(Section):
    """When a run tells its user to look. Alerts change nothing in what is computed."""

    window: PositiveInt = 5
    """Steps whose mean counts for entropy and reward."""
    entropy_share: float = Field(default=0.1, ge=0, lt=1)
    """Entropy below this share of what it was in the first window; 0 never alerts."""
    reward_drop: PositiveFloat = 0.5
    """Mean reward this many standard deviations of a score below the best window's; the largest a step had, since at
    its best a reward may be the same everywhere."""
    mismatch_k3: PositiveFloat = 1e-3
    """KL between sampler and learner under the same weights, in nats per token."""


LOOK_AT = {
    "entropy": "The policy has nearly stopped exploring. Look at entropy, group/frac_mixed and kl/old; raise "
    "learner.epsilon_high or rollout.temperature, or lower learner.learning_rate or learner.num_minibatches.",
    "reward": "The policy has forgotten what it could. Look at len/mean, len/truncated_frac, verdict/* and kl/old "
    "there, and at samples.jsonl; go back to an earlier checkpoint with a lower learner.learning_rate, or hold the "
    "policy with learner.beta.",
    "mismatch": "Sampler and learner disagree about the same weights: updates are off-policy. Look at mismatch/*; with "
    "another backend or precision set learner.correction (docs/OBJECTIVES.md), with our own engine report a bug.",
    "skipped": "Loss or gradient was not finite, and optimizer steps were left out. Look at optim/grad_norm, ratio/max "
    "and mismatch/ratio_max before that step; lower learner.learning_rate.",
}
"""By alert: what it means and what to do."""


class Alert(NamedTuple):
    name: str
    found: str


class Watch:
    """Looks at the rows of metrics one after the other; its state is a function of the rows it has seen."""

    def __init__(self, config: AlertConfig):
        self._config = config
        self._entropy, self._reward = (deque[float](maxlen=config.window) for _ in range(2))
        self._first_entropy: float | None = None
        self._best, self._spread = -math.inf, 0.0
        self._on: set[str] = set()

    def look(self, row: Mapping[str, Any]) -> tuple[dict[str, float], list[Alert]]:
        """`alert/*` metrics of a training step's row, 1 while a condition holds, and the alerts that begin with it."""
        found = [
            alert for alert in (self._see_entropy(row), self._see_reward(row), *self._see_now(row)) if alert is not None
        ]
        new = [alert for alert in found if alert.name not in self._on]
        self._on = {alert.name for alert in found}
        return {f"alert/{name}": float(name in self._on) for name in LOOK_AT}, new

    def replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes in the rows of the steps before a resume."""
        for row in rows:
            if "reward/mean" in row:
                self.look(row)

    def _see_entropy(self, row: Mapping[str, Any]) -> Alert | None:
        if not _add(self._entropy, row.get("entropy")):
            return None
        now = fmean(self._entropy)
        if self._first_entropy is None:
            self._first_entropy = now
        if now >= self._config.entropy_share * self._first_entropy:
            return None
        return Alert("entropy", f"entropy fell to {now:.3g} nats, from {self._first_entropy:.3g}")

    def _see_reward(self, row: Mapping[str, Any]) -> Alert | None:
        self._spread = max(self._spread, float(row.get("reward/std") or 0.0))
        if not _add(self._reward, row.get("reward/mean")):
            return None
        now = fmean(self._reward)
        self._best = max(self._best, now)
        if now >= self._best - self._config.reward_drop * self._spread:
            return None
        return Alert("reward", f"mean reward fell to {now:.3g}, from {self._best:.3g}")

    def _see_now(self, row: Mapping[str, Any]) -> list[Alert]:
        found = []
        k3, skipped = row.get("mismatch/k3"), row.get("optim/skipped")
        # What older weights sampled differs because they do, which is no sign of anything wrong.
        if k3 is not None and k3 > self._config.mismatch_k3 and not row.get("staleness/max"):
            found.append(Alert("mismatch", f"KL(sampler, learner) is {k3:.3g} nats per token"))
        if skipped:
            found.append(Alert("skipped", f"{skipped:g} optimizer steps were skipped"))
        return found


def _add(window: deque[float], value: float | None) -> bool:
    """Adds a finite value; whether the window is full with it."""
    if value is None or not math.isfinite(value):
        return False
    window.append(float(value))
    return len(window) == window.maxlen
