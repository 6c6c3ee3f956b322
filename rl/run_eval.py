"""Accuracy of checkpoints on a recipe's held-out problems, all its sets, in this process, without Ray.

python rl/run_eval.py --config configs/quickstart.yaml [key=value ...]
python rl/run_eval.py --config configs/tasks.yaml --checkpoints runs/a runs/b/checkpoints/best --lengths 256 512 --out t

Without --checkpoints, takes the newest checkpoint of the recipe's run, or model.path if the run has none.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltarl.rl.cli import ConfigError, config_parser, exit_status, read_config
from deltarl.rl.config import RunConfig

if TYPE_CHECKING:
    from deltarl.rl.episodes import Episodes


def evaluate_checkpoint(config: RunConfig) -> dict[str, float | str]:
    """The metrics that a run logs (`evaluate.eval_metrics`) of `newest_checkpoint`, and as `checkpoint` which it is."""
    from deltarl.rl.evaluate import eval_metrics

    path = newest_checkpoint(config)
    return {"checkpoint": str(path), **eval_metrics(answers(config, path), config.reward.timeout)}


def answers(config: RunConfig, checkpoint: Path) -> "dict[str, Episodes]":
    """Scored answers to each set of held-out problems (data.test is "")."""
    from deltarl.reward.batch import TrainerState
    from deltarl.reward.rewards import Scorer
    from deltarl.rl.config import ModelConfig
    from deltarl.rl.evaluate import evaluate
    from deltarl.rl.fleets import scorer_arguments
    from deltarl.rl.problem_set import load_tests
    from deltarl.rl.warm_start import load_tokenizer
    from deltarl.rollout.worker import make_backend

    tokenizer = load_tokenizer(ModelConfig(path=str(checkpoint)))
    tests = load_tests(config, tokenizer)
    sampler = make_backend(config.rollout.backend, str(checkpoint), max_num_seqs=config.rollout.max_num_seqs)
    scorer = Scorer(**scorer_arguments(config))
    try:
        return evaluate(
            tests,
            config,
            tokenizer=tokenizer,
            sampler=sampler,
            scorer=scorer,
            state=TrainerState(config.steps, config.steps),  # as at the end: no warm-up hides a reward
        )
    finally:
        scorer.close()
        sampler.close()


def newest_checkpoint(config: RunConfig) -> Path:
    """Of the recipe's run, or the model it starts from.

    Raises:
        ConfigError: there is neither.
    """
    from deltarl.rl.checkpoint import CheckpointStore

    path = CheckpointStore(config.run_dir, config.checkpoint.keep).latest() or config.model.path
    if path is None:
        raise ConfigError(f"{config.run_dir} has no checkpoint; run the recipe first, or give model.path=FOLDER")
    return Path(path)


def evaluate_all(config: RunConfig, folders: Sequence[Path], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of the table; see `eval_table`.

    Args:
        folders: checkpoints, or runs, whose newest is taken; none is `newest_checkpoint`.
        lengths: see `eval_table.at_lengths`; none leaves the recipe's.
    """
    from deltarl.rl.eval_table import TEST, at_lengths, checkpoint_in, set_rows

    config, main = at_lengths(config, lengths) if lengths else (config, TEST)
    rows = []
    for path in [checkpoint_in(folder) for folder in folders] or [newest_checkpoint(config)]:
        found = answers(config, path)
        rows += set_rows(path, {name or main: episodes for name, episodes in found.items()}, config.reward.timeout)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-eval`; prints a table, and writes it if asked to."""
    parser = config_parser("Evaluate checkpoints on held-out problems.")
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="or runs, for their newest",
    )
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[], help="ask generated test problems that have a length at these"
    )
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.csv and NAME.json too")
    config, args = read_config(parser, argv)

    def run() -> None:
        from deltarl.rl.eval_table import show, write

        rows = evaluate_all(config, args.checkpoints, args.lengths)
        print(show(rows))
        if args.out is not None:
            write(rows, args.out)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
