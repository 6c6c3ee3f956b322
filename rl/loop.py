"""The run: sample, score, learn, publish, again. Read this file from top to bottom to know what happens."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase

from deltarl.actor.host import StateLostError
from deltarl.reward.batch import TrainerState
from deltarl.rl.ahead import Ahead
from deltarl.rl.alerts import LOOK_AT, Watch
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.collect import Collector
from deltarl.rl.config import RunConfig
from deltarl.rl.credit import assign_credit
from deltarl.rl.data import batch_indices, epoch_of
from deltarl.rl.difficulty import measured_success
from deltarl.rl.episode_stats import sample_rows, staleness_metrics, train_metrics
from deltarl.rl.episodes import Episodes
from deltarl.rl.evaluate import eval_metrics, evaluate
from deltarl.rl.exports import Exports
from deltarl.rl.faults import Faults
from deltarl.rl.fleets import Fleets
from deltarl.rl.metrics import METRICS_FILE, MetricsWriter, SampleWriter, read_jsonl, truncate_after
from deltarl.rl.objectives.kl import adapted_beta
from deltarl.rl.objectives.updates import adapted_updates
from deltarl.rl.problem_set import MAIN, ProblemSet
from deltarl.rl.publisher import Publisher
from deltarl.rl.sanity import sanity_report
from deltarl.rl.stages import FleetSampler, FleetScorer
from deltarl.rl.stopwatch import Stopwatch
from deltarl.rl.timeline import of_step
from deltarl.rl.transport import choose_transport, own_gpus
from deltarl.rollout.rng import derive_seed

log = logging.getLogger(__name__)

PTX_STREAM = -3  # keeps the order of the solutions apart from other random numbers, as evaluate.EVAL_STREAM does
DRAW_FILE = "draw.json"
SCORE = "eval/pass@1"  # what makes one checkpoint better than another


class Loop:
    """One run over started fleets.

    `rollout.max_staleness` is how many batches the samplers may be ahead of the learner: none in a synchronous run.
    Nothing random is kept between steps: problems, seeds and shuffles are functions of (config.seed, step), and so is
    the version of the weights that samples, unless `rollout.in_flight` has it change on the way. Model, optimizer, a
    few numbers, the success rates of problems and the batches sampled ahead are therefore all a checkpoint needs for
    the resumed run to be the run that never stopped.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        tokenizer: PreTrainedTokenizerBase,
        problems: ProblemSet,
        fleets: Fleets,
        faults: Faults,
    ):
        self.config, self.tokenizer, self.problems, self.fleets = config, tokenizer, problems, fleets
        self.faults = faults
        self.sampler = FleetSampler(fleets.rollout, faults, lambda ids: str(tokenizer.decode(ids)))
        self.scorer = FleetScorer(fleets.reward, faults)
        stages = tokenizer, self.sampler, self.scorer
        success = measured_success(config, run_dir, problems.train, *stages)
        self.draw = problems.draw(config, success)
        call = fleets.timeline.call
        collector = Collector(config, problems.train, *stages, self.draw, partial(call, "driver", 1))
        staleness = config.rollout.max_staleness
        in_thread = staleness > 0 and not config.in_process
        self.ahead = Ahead(collector.collect, staleness, config.steps, in_thread)
        transport, why = choose_transport(config)
        log.info("weights go to the samplers by %s: %s", transport, why)
        members = fleets.rollout, fleets.learner, self.ahead
        in_flight = config.rollout.in_flight != "none"
        self.publisher = Publisher(transport, own_gpus(config), *members, copy=staleness > 0, in_flight=in_flight)
        self.store = CheckpointStore(run_dir, config.checkpoint.keep, config.checkpoint.keep_best)
        self.tokens_total, self.restarts_before = 0.0, 0.0
        self.beta, self.updates = config.learner.beta, config.learner.num_minibatches
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.spans = partial(call, "driver", 0)
        self.clock = Stopwatch(self.spans)
        self.watch = Watch(config.alerts)
        self.first_step = self._resume(run_dir)
        # The last step that changed the weights, whose rows are written, and that has a checkpoint.
        self.weights_step = self.logged_step = self.saved_step = self.first_step - 1
        mode, project = config.logging.wandb, config.logging.wandb_project
        self.metrics = MetricsWriter(
            run_dir,
            config.model_dump(mode="json"),
            mode,
            project,
            config.name,
            tensorboard=config.logging.tensorboard,
        )
        self.exports = Exports(config.name, config.logging.prometheus_host, config.logging.prometheus_port)
        self.samples = SampleWriter(run_dir)

    def run(self) -> None:
        """From the first step not done yet to the last.

        If sampling or scoring fails, or the run is stopped by SIGINT or SIGTERM, the steps done so far are saved before
        the error goes on.
        """
        try:
            if self.first_step == 1:
                self._show_one_problem()
                self._log(0, self._evaluate(0))
            steps = range(self.first_step, self.config.steps + 1)
            bar = tqdm(steps, initial=self.first_step - 1, total=self.config.steps, unit="step", disable=None)
            for step in bar:
                with logging_redirect_tqdm(), of_step(step):
                    self._step(step, bar)
            self._finish_saving()
            if self.saved_step < self.config.steps:
                raise OSError(f"the last checkpoint could not be written to {self.store.root}: is the disk full?")
        except StateLostError:
            raise  # there is nobody left to save it
        except (Exception, KeyboardInterrupt):
            # In the middle of an update nobody knows the weights: then the run goes on from an earlier checkpoint.
            if self.logged_step > self.saved_step and self.weights_step == self.logged_step:
                with suppress(StateLostError):  # what stopped the run is the news
                    self._save(self.logged_step)
            raise
        finally:
            self.ahead.close()
            with suppress(StateLostError):
                self._finish_saving()
            self.metrics.close()
            self.exports.close()
            self.samples.close()

    def _step(self, step: int, bar: tqdm) -> None:
        config = self.config
        with self.clock("step"):
            with self.clock("wait_rollout"):
                batch = self.ahead.take(step)
            self.weights_step = step
            self.clock.seconds |= batch.seconds
            episodes = batch.episodes
            row = train_metrics(episodes) | staleness_metrics(episodes, step - 1) | batch.metrics
            row |= self._learn(step, episodes, batch.prompts)
            with self.clock("weight_sync"):
                self._publish()
            if step % config.eval.interval == 0 or step == config.steps:
                row |= self._evaluate(step)
        self.tokens_total += row["tokens/completion"]
        alerts, new = self.watch.look(row)
        for alert in new:
            log.warning("ALERT at step %d: %s. %s", step, alert.found, LOOK_AT[alert.name])
        row |= alerts
        self._log(step, row, bar)
        self.samples.log(sample_rows(episodes, step, "train", config.logging.samples_per_step))
        self.logged_step = step
        score = row.get(SCORE)
        if step % config.checkpoint.interval == 0 or step == config.steps or self._is_best(score):
            # After the rows it vouches for are on disk; its time is therefore logged with the next step.
            with self.clock("checkpoint"):
                self._save(step, score)

    def _show_one_problem(self) -> None:
        stages = self.sampler, self.scorer, self.fleets.learner
        for line in sanity_report(self.config, self.tokenizer, self.problems.train[0], *stages):
            log.log(logging.WARNING if line.startswith("WARNING") else logging.INFO, line)

    def _learn(self, step: int, episodes: Episodes, prompts: Sequence[int]) -> dict[str, float]:
        """The update of `step`, on the answers to these prompts of the episodes."""
        learner = self.config.learner
        with self.clock("update"):
            samples, metrics = assign_credit(episodes, prompts, learner, self.beta, self.fleets.learner)
        if len(samples) < learner.num_ranks * learner.num_minibatches:
            raise ValueError(
                f"only {len(samples)} answers of this step have a score; no reward function gave the others one"
            )
        batch = split_batch(samples, learner.num_ranks, self.updates, self._solutions(step))
        with self.clock("update"):
            metrics |= self.fleets.learner.scatter("update", [(share, self.beta) for share in batch])[0]
        if learner.beta:
            metrics["kl/beta"] = self.beta
        if learner.kl_target is not None:
            self.beta = adapted_beta(self.beta, metrics["kl/ref"], learner.kl_target, learner.kl_horizon)
        metrics["optim/updates"] = self.updates
        if learner.min_entropy:
            most = learner.num_minibatches
            self.updates = adapted_updates(self.updates, metrics["entropy"], learner.min_entropy, most)
        tokens = sum(len(s) for share in batch for minibatch in share for s in minibatch.samples)
        return metrics | {"tok_s/train": tokens / self.clock.seconds["update"]}

    def _solutions(self, step: int) -> list[TrainSample]:
        """The worked solutions to imitate in `step`."""
        learner, found = self.config.learner, self.problems.solutions
        if not found:
            return []
        order = derive_seed(self.config.seed, PTX_STREAM)
        return [
            found[i]
            for i in batch_indices(len(found), learner.ptx_batch_size * learner.num_minibatches, step - 1, order)
        ]

    def _publish(self) -> None:
        """Learner to samplers, when these have sampled what they were asked for before, or (rollout.in_flight) in the
        middle of it; every sampler verifies the checksum of what it loaded."""
        self.publisher.publish()

    def _evaluate(self, step: int) -> dict[str, float]:
        with self.clock("eval"):
            found = self.ahead.do(
                evaluate,
                self.problems.tests,
                self.config,
                tokenizer=self.tokenizer,
                sampler=self.sampler,
                scorer=self.scorer,
                state=TrainerState(step, self.config.steps),
            ).result()
            metrics = eval_metrics(found, self.config.reward.timeout)
        self.samples.log(sample_rows(found[MAIN], step, "eval", 4 * self.config.logging.samples_per_step))
        log.info("step %d: held-out pass@1 %.3f", step, metrics["eval/pass@1"])
        return metrics

    def _log(self, step: int, row: dict[str, float], bar: tqdm | None = None) -> None:
        times, self.clock = self.clock.seconds, Stopwatch(self.spans)
        row |= {f"time/{phase}": seconds for phase, seconds in times.items()}
        row |= self.fleets.idle()
        row["time/total"] = self._seconds()
        row["tokens/total"] = self.tokens_total
        row["worker/restarts"] = self._restarts()
        row |= self.faults.metrics()
        row["weights/version"] = step
        if "rollout" in times:
            row["tok_s/rollout"] = row["tokens/completion"] / times["rollout"]
            row["data/epoch"] = epoch_of(len(self.problems.train), self.config.rollout.prompts_per_step, step)
        if bar is not None:
            bar.set_postfix(reward=f"{row['reward/mean']:.3f}", length=f"{row['len/mean']:.1f}")
            log.log(
                logging.INFO if bar.disable else logging.DEBUG,
                "step %d/%d: reward %.3f, length %.1f, %.2f s",
                *(step, self.config.steps, row["reward/mean"], row["len/mean"], row["time/step"]),
            )
        self.metrics.log(step, row)
        self.exports.log(step, row)

    def _is_best(self, score: float | None) -> bool:
        if score is None or not self.config.checkpoint.keep_best:
            return False
        best = self.store.best()
        return best is None or score > self.store.state(best)["score"]

    def _save(self, step: int, score: float | None = None) -> None:
        """Begins the checkpoint of `step`: the learner completes it while the run goes on."""
        self._finish_saving()
        state = {"tokens_total": self.tokens_total, "seconds": self._seconds(), "restarts": self._restarts()}
        state |= {"beta": self.beta, "updates": self.updates}
        try:
            folder = self.store.begin()
            self.tokenizer.save_pretrained(folder)
            self.ahead.save(folder)  # first: until all is sampled, the draw goes on
            self.draw.save(folder / DRAW_FILE)
            self.fleets.learner.broadcast("save", folder, partial(self.store.complete, folder, step, state, score))
            self.saved_step = step
        except OSError as error:
            self._not_saved(error)

    def _finish_saving(self) -> None:
        """Waits for the checkpoint under way. A run goes on without one that cannot be written."""
        try:
            self.fleets.learner.broadcast("saved")
        except OSError as error:
            self._not_saved(error)

    def _not_saved(self, error: OSError) -> None:
        self.saved_step = self.first_step - 1
        log.warning("a checkpoint could not be written (%s); the newest is %s", error, self.store.latest())

    def _resume(self, run_dir: Path) -> int:
        """Goes back to the newest checkpoint, if there is one; returns the first step to do."""
        checkpoint = self.store.latest()
        state = self.store.state(checkpoint) if checkpoint else {"step": 0}
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (run_dir / name).exists():
                truncate_after(run_dir / name, int(state["step"]) if checkpoint else -1)
        if checkpoint is None:
            return 1
        self.watch.replay(read_jsonl(run_dir / METRICS_FILE))
        log.info("resuming after step %d", state["step"])
        self.tokens_total, self.seconds_before = state["tokens_total"], state["seconds"]
        self.restarts_before, self.beta = state["restarts"], state["beta"]
        self.updates = int(state["updates"])
        self.draw.load(checkpoint / DRAW_FILE)
        self.ahead.load(checkpoint, int(state["step"]), self.problems.train)
        self.fleets.learner.broadcast("load", checkpoint.resolve())
        self._publish()
        return int(state["step"]) + 1

    def _restarts(self) -> float:
        return self.restarts_before + self.fleets.rollout.restarts + self.fleets.reward.restarts

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started
