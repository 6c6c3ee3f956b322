"""Trains a policy with GRPO: warm start, then sample, score, learn; leaves metrics, checkpoints and a report.

python rl/run_grpo.py --config configs/quickstart.yaml [key=value ...]
"""

import sys
from collections.abc import Sequence

from deltarl.rl.cli import run_command
from deltarl.rl.train import train


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-grpo`."""
    return run_command("Train a policy with GRPO.", train, argv)


if __name__ == "__main__":
    sys.exit(main())
