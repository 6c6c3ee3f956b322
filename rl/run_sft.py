"""The warm start alone: supervises a model on worked solutions and writes a checkpoint that GRPO can start from.

python rl/run_sft.py --config configs/quickstart.yaml [key=value ...]
"""

import logging
import sys
from collections.abc import Sequence

from deltarl.actor import runtime
from deltarl.rl.cli import ConfigError, exit_status, parse_config
from deltarl.rl.config import RunConfig
from deltarl.rl.run_dir import log_to, open_run_dir

log = logging.getLogger("deltarl.rl.run_sft")  # also when run as a script


def warm_up(config: RunConfig) -> None:
    """Makes `initial/` in the run's folder, if it is not there yet.

    Raises:
        ConfigError: the recipe has no warm start.
    """
    if config.sft is None:
        raise ConfigError("the recipe has no `sft` section")
    run_dir = open_run_dir(config)
    log_to(run_dir)
    from deltarl.rl.faults import Faults
    from deltarl.rl.fleets import placed, warm_start
    from deltarl.rl.problem_set import ProblemSet, demonstrations
    from deltarl.rl.recovery import keep_running
    from deltarl.rl.supervise import newest_checkpoint
    from deltarl.rl.warm_start import load_tokenizer, starting_point

    tokenizer = load_tokenizer(config.model)
    shown = demonstrations(ProblemSet.load(config, tokenizer).train, config.sft)
    folder = run_dir / "initial"
    if config.in_process:
        starting_point(folder, config, tokenizer, shown)
    elif not folder.is_dir():
        learner = config.learner

        def attempt() -> None:
            with placed(config, learner_alone=True) as places:
                warm_start(config, folder, shown, places)

        runtime.start(learner.num_ranks * learner.num_cpus, bool(learner.num_gpus))
        try:
            keep_running(attempt, lambda: newest_checkpoint(run_dir / "sft"), Faults(run_dir), learner.max_restarts)
        finally:
            runtime.stop()
    log.info("checkpoint: %s", folder.resolve())


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-sft`."""
    config = parse_config("Supervised warm start.", argv)
    return exit_status(lambda: warm_up(config))


if __name__ == "__main__":
    sys.exit(main())
