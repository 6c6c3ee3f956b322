"""Trains a policy with PPO: as run_grpo.py, with a critic that says what each token was worth.

python rl/run_ppo.py --config configs/quickstart_ppo.yaml [key=value ...]
"""

import sys
from collections.abc import Sequence

from deltarl.rl.cli import ConfigError, run_command
from deltarl.rl.config import RunConfig
from deltarl.rl.train import train


def train_with_critic(config: RunConfig) -> None:
    """See `train`.

    Raises:
        ConfigError: the configuration has no critic.
    """
    if config.learner.baseline != "critic":
        raise ConfigError(
            f"algorithm = {config.algorithm!r} has no critic (learner.baseline = {config.learner.baseline!r}): say "
            "algorithm=ppo, or use run_grpo.py"
        )
    train(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-ppo`."""
    return run_command("Train a policy with PPO.", train_with_critic, argv)


if __name__ == "__main__":
    sys.exit(main())
