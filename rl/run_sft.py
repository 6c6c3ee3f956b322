"""The warm start alone: supervises a model on worked solutions and writes a checkpoint that GRPO can start from.

python rl/run_sft.py --config configs/quickstart.yaml [key=value ...]
"""

import logging
import sys
from collections.abc import Sequence

from deltarl.actor import runtime
from deltarl.rl.cli import ConfigError, parse_config
from deltarl.rl.run_dir import log_to, open_run_dir

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-sft`."""
    config = parse_config("Supervised warm start.", argv)
    try:
        if config.sft is None:
            raise ConfigError("the recipe has no `sft` section")
        run_dir = open_run_dir(config)
        log_to(run_dir)
        from deltarl.rl.fleets import warm_start
        from deltarl.rl.problem_set import ProblemSet, demonstrations
        from deltarl.rl.warm_start import load_tokenizer

        tokenizer = load_tokenizer(config.model)
        problems = ProblemSet.load(config, tokenizer)
        shown = demonstrations(problems.train, config.sft)
        folder = run_dir / "initial"
        if not folder.is_dir():
            runtime.start(config.learner.num_ranks * config.learner.num_cpus)
            try:
                warm_start(config, folder, shown)
            finally:
                runtime.stop()
        log.info("checkpoint: %s", folder.resolve())
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
