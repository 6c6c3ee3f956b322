"""Accuracy of a checkpoint on a recipe's held-out problems, all its sets, in this process, without Ray.

python rl/run_eval.py --config configs/quickstart.yaml [key=value ...]

Takes the newest checkpoint of the recipe's run, or model.path if the run has none.
"""

import json
import sys
from collections.abc import Sequence

from deltarl.rl.cli import ConfigError, exit_status, parse_config
from deltarl.rl.config import RunConfig


def evaluate_checkpoint(config: RunConfig) -> dict[str, float | str]:
    """The metrics of `evaluate.eval_metrics` and the checkpoint they belong to."""
    from deltarl.reward.batch import TrainerState
    from deltarl.reward.rewards import Scorer
    from deltarl.rl.checkpoint import CheckpointStore
    from deltarl.rl.evaluate import eval_metrics, evaluate
    from deltarl.rl.fleets import scorer_arguments
    from deltarl.rl.problem_set import ProblemSet
    from deltarl.rl.warm_start import load_tokenizer
    from deltarl.rollout.worker import make_backend

    path = CheckpointStore(config.run_dir, config.checkpoint.keep).latest() or config.model.path
    if path is None:
        raise ConfigError(f"{config.run_dir} has no checkpoint; run the recipe first, or give model.path=FOLDER")
    tokenizer = load_tokenizer(config.model)
    problems = ProblemSet.load(config, tokenizer)
    sampler = make_backend(config.rollout.backend, str(path), max_num_seqs=config.rollout.max_num_seqs)
    scorer = Scorer(**scorer_arguments(config))
    try:
        episodes = evaluate(
            problems.tests,
            config,
            tokenizer=tokenizer,
            sampler=sampler,
            scorer=scorer,
            state=TrainerState(config.steps, config.steps),  # as at the end: no warm-up hides a reward
        )
    finally:
        scorer.close()
        sampler.close()
    return {"checkpoint": str(path), **eval_metrics(episodes, config.reward.timeout)}


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-eval`; prints one JSON object."""
    config = parse_config("Evaluate a checkpoint on held-out problems.", argv)
    return exit_status(lambda: print(json.dumps(evaluate_checkpoint(config), indent=2)))


if __name__ == "__main__":
    sys.exit(main())
