"""A run from its configuration to its report: warm start, then sample, score, learn."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from deltarl.actor import runtime
from deltarl.rl.config import RunConfig
from deltarl.rl.run_dir import log_to, open_run_dir

log = logging.getLogger(__name__)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Has SIGTERM (`ray job stop`, a batch system, a spot instance that is taken back) stop the run as Ctrl-C does.

    To be entered after Ray was started, which has a handler of its own. Only the main thread can.
    """

    def stop(*unused: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train(config: RunConfig) -> None:
    """Runs `config` to its end, from wherever an earlier attempt at it stopped.

    Raises:
        ConfigError, ValueError: what is wrong with the configuration or the data, before anything is started.
    """
    run_dir = open_run_dir(config)
    log_to(run_dir)
    # Imported late: these take seconds, and a mistake in the configuration should not.
    from deltarl.reward.rewards import Scorer
    from deltarl.rl.checkpoint import CheckpointStore
    from deltarl.rl.faults import Faults
    from deltarl.rl.fleets import Fleets, cpus_needed, gpu_shares, placed, scorer_arguments, warm_start
    from deltarl.rl.loop import Loop
    from deltarl.rl.problem_set import ProblemSet, demonstrations
    from deltarl.rl.recovery import keep_running
    from deltarl.rl.report import write_report
    from deltarl.rl.supervise import newest_checkpoint
    from deltarl.rl.warm_start import check_context, load_tokenizer, starting_point

    Scorer(**scorer_arguments(config)).close()  # a plug-in that cannot be loaded is refused now
    check_context(config)
    tokenizer = load_tokenizer(config.model)
    problems = ProblemSet.load(config, tokenizer)
    shown = demonstrations(problems.train, config.sft) if config.sft else []
    faults = Faults(run_dir)
    store = CheckpointStore(run_dir, config.checkpoint.keep, config.checkpoint.keep_best)

    def attempt() -> None:
        """From the newest checkpoint, or the beginning, to the end."""
        with ExitStack() as held:
            places = {} if config.in_process else held.enter_context(placed(config))
            if shown and not config.in_process and not (run_dir / "initial").is_dir():
                warm_start(config, run_dir / "initial", shown, places)
            model_path = starting_point(run_dir / "initial", config, tokenizer, shown)
            fleets = Fleets.start(config, model_path, places)
            try:
                Loop(config, run_dir, tokenizer, problems, fleets, faults).run()
            finally:
                fleets.close()

    if not config.in_process:
        runtime.start(cpus_needed(config), bool(gpu_shares(config)))
    try:
        with stopped_by_sigterm():
            keep_running(
                attempt,
                lambda: store.latest() or newest_checkpoint(run_dir / "sft"),
                faults,
                config.learner.max_restarts,
            )
    finally:
        if not config.in_process:
            runtime.stop()
        if (run_dir / "metrics.jsonl").exists() and (run_dir / "metrics.jsonl").stat().st_size:
            log.info("report: %s", write_report(run_dir).resolve())
