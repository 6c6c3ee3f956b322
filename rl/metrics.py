"""What a run measures: the one table of metric names, and the writers of metrics.jsonl and samples.jsonl.

`python -m deltarl.rl.metrics` prints the table as Markdown; docs/METRICS.md holds it.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, SupportsFloat, TypedDict

from deltarl.actor.redaction import redacted_tree
from deltarl.rl.jsonl import JsonlWriter, read_jsonl, truncate_after
from deltarl.rl.tensorboard_run import TensorBoardRun
from deltarl.rl.wandb_run import WANDB_MODES, WandbMode, WandbRun

__all__ = [
    "METRICS",
    "MetricDoc",
    "MetricsWriter",
    "SampleRow",
    "SampleWriter",
    "metric_doc",
    "metrics_table",
    "read_curve",
    "read_jsonl",
    "truncate_after",
]

SCHEMA_VERSION = 1
"""Of the rows of metrics.jsonl and samples.jsonl (docs/METRICS.md): a row without a "schema" key is of version 1."""
OF_THE_MACHINE = ("time/", "idle/", "tok_s/", "verdict/seconds", "worker/")
"""How the names begin of metrics that depend on the machine; all others depend on the seed alone."""

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class MetricDoc(NamedTuple):
    """What a metric means, in which unit, and the panel of the report and of wandb it belongs to."""

    description: str
    unit: str
    panel: str


# A part in braces stands for a name the run brings along: {k} a number, any other one path part.
METRICS: dict[str, MetricDoc] = {
    "reward/mean": MetricDoc("Mean reward over the step's completions", "reward", "Reward"),
    "reward/std": MetricDoc("Standard deviation of the reward over the step's completions", "reward", "Reward"),
    "reward/{plugin}/mean": MetricDoc("Mean score given by one reward plug-in, before weighting", "reward", "Reward"),
    "reward/{plugin}/log/{metric}": MetricDoc("Mean of what a reward plug-in logs itself", "any", "Reward"),
    "acc/train": MetricDoc("Share of training completions that the verifier calls right", "fraction", "Reward"),
    "eval/pass@1": MetricDoc(
        "Held-out problems: chance that one sampled answer is right, the mean over k samples (avg@k)",
        "fraction",
        "Evaluation",
    ),
    "eval/pass@{k}": MetricDoc("Held-out problems: chance that one of k answers is right", "fraction", "Evaluation"),
    "eval/maj@{k}": MetricDoc("Held-out problems: most of k answers agree on a right one", "fraction", "Evaluation"),
    "eval/{metric}@{k}/low": MetricDoc("Its 95% bootstrap interval over problems, lower end", "fraction", "Evaluation"),
    "eval/{metric}@{k}/high": MetricDoc("The upper end", "fraction", "Evaluation"),
    "eval/{set}/{metric}": MetricDoc("The same of a set of data.more_tests", "fraction", "Evaluation"),
    "eval/{set}/{metric}@{k}/low": MetricDoc("Its 95% interval, lower end", "fraction", "Evaluation"),
    "eval/{set}/{metric}@{k}/high": MetricDoc("The upper end", "fraction", "Evaluation"),
    "eval/len_mean": MetricDoc("Mean completion length on held-out problems", "tokens", "Evaluation"),
    "eval/truncated_frac": MetricDoc("Held-out completions cut at the token limit", "fraction", "Evaluation"),
    "eval/no_answer_frac": MetricDoc("Held-out completions without a final answer", "fraction", "Evaluation"),
    "group/frac_all_right": MetricDoc("Groups whose completions are all right: no signal", "fraction", "Groups"),
    "group/frac_all_wrong": MetricDoc("Groups whose completions are all wrong: no signal", "fraction", "Groups"),
    "group/frac_mixed": MetricDoc("Groups with right and wrong completions: these teach", "fraction", "Groups"),
    "group/kept_frac": MetricDoc("Sampled groups learned from, by dynamic sampling", "fraction", "Groups"),
    "group/refills": MetricDoc("Times dynamic sampling sampled more in place of dropped groups", "count", "Groups"),
    "verdict/right_frac": MetricDoc("Completions with a right answer", "fraction", "Verdicts"),
    "verdict/wrong_frac": MetricDoc("Completions with a readable but wrong answer", "fraction", "Verdicts"),
    "verdict/no_answer_frac": MetricDoc("Completions without a final answer", "fraction", "Verdicts"),
    "verdict/unparsable_frac": MetricDoc("Completions whose final answer cannot be parsed", "fraction", "Verdicts"),
    "verdict/timeout_frac": MetricDoc("Answers the verifier gave up on at its deadline", "fraction", "Verdicts"),
    "verdict/error_frac": MetricDoc("Answers on which the verifier itself failed", "fraction", "Verdicts"),
    "verdict/seconds_p95": MetricDoc("95th percentile of the time for one verdict", "seconds", "Verdicts"),
    "len/mean": MetricDoc("Mean completion length", "tokens", "Length"),
    "len/p95": MetricDoc("95th percentile of the completion length", "tokens", "Length"),
    "len/max": MetricDoc("Longest completion", "tokens", "Length"),
    "len/right": MetricDoc("Mean length of right completions", "tokens", "Length"),
    "len/wrong": MetricDoc("Mean length of completions that are not right", "tokens", "Length"),
    "len/truncated_frac": MetricDoc("Completions cut at the token limit", "fraction", "Length"),
    "loss/policy": MetricDoc("Policy loss that was minimised, mean over the step's updates", "loss", "Policy"),
    "loss/ptx": MetricDoc("Supervised loss on worked solutions per token (learner.ptx_weight)", "nats", "Policy"),
    "loss/value": MetricDoc("Loss of the critic per token, mean over the step's updates", "reward²", "Critic"),
    "value/explained_variance": MetricDoc(
        "Share of the returns' variance that the critic foresaw, before it learned from them", "fraction", "Critic"
    ),
    "value/mean": MetricDoc("Mean of the critic's values over tokens", "reward", "Critic"),
    "value/return_mean": MetricDoc("Mean of the returns over tokens, what the values should be", "reward", "Critic"),
    "clip/frac_value": MetricDoc("Tokens whose value the clip range keeps from moving further", "fraction", "Critic"),
    "kl/ref": MetricDoc("KL(policy, reference model) per token, by learner.kl_estimator", "nats", "Policy"),
    "kl/beta": MetricDoc("Weight of the KL to the reference model in this step", "1", "Policy"),
    "kl/penalty": MetricDoc("Mean that the KL takes off a completion's reward (kl_in=reward)", "reward", "Policy"),
    "kl/old": MetricDoc("k3 estimate of KL between the policy before and during the update", "nats", "Policy"),
    "entropy": MetricDoc("Mean entropy of the policy's next-token distribution", "nats", "Policy"),
    "clip/frac_low": MetricDoc("Tokens clipped at the lower end, advantage negative", "fraction", "Policy"),
    "clip/frac_high": MetricDoc("Tokens clipped at the upper end, advantage positive", "fraction", "Policy"),
    "clip/frac_corrected": MetricDoc("Tokens whose off-policy correction met a bound", "fraction", "Policy"),
    "ratio/mean": MetricDoc(
        "Mean importance ratio of the policy to the one before the update (without learner.correction: that sampled)",
        "ratio",
        "Policy",
    ),
    "ratio/max": MetricDoc("Largest importance ratio", "ratio", "Policy"),
    "mismatch/logprob_abs_mean": MetricDoc("Mean absolute log-prob difference, sampler to learner", "nats", "Mismatch"),
    "mismatch/logprob_abs_max": MetricDoc("Largest log-prob difference, sampler to learner", "nats", "Mismatch"),
    "mismatch/k3": MetricDoc(
        "k3 estimate of KL(sampler, learner): at the same weights, or as far as samplers are behind", "nats", "Mismatch"
    ),
    "mismatch/kl": MetricDoc("k1 estimate of the same", "nats", "Mismatch"),
    "mismatch/ratio_max": MetricDoc("Largest probability ratio of a token, learner to sampler", "ratio", "Mismatch"),
    "mismatch/ess": MetricDoc(
        "Effective sample size under the ratios learner to sampler, as a share of the tokens", "fraction", "Mismatch"
    ),
    "mismatch/ess_answer": MetricDoc("The same of whole completions' ratios", "fraction", "Mismatch"),
    "router/disagreement": MetricDoc(
        "Experts replayed that the learner's routers would not have chosen (learner.router_replay)",
        "fraction",
        "Mismatch",
    ),
    "optim/grad_norm": MetricDoc("Norm of the gradient before clipping", "norm", "Optimiser"),
    "optim/critic_grad_norm": MetricDoc("Norm of the critic's gradient before clipping", "norm", "Optimiser"),
    "optim/updates": MetricDoc("Optimizer steps of this step (learner.min_entropy)", "count", "Optimiser"),
    "optim/skipped": MetricDoc("Optimizer steps left out, loss or gradient not being finite", "count", "Optimiser"),
    "optim/lr": MetricDoc("Learning rate", "1/update", "Optimiser"),
    "tok_s/rollout": MetricDoc("Completion tokens sampled per second of rollout time", "tokens/s", "Speed"),
    "tok_s/train": MetricDoc("Prompt and completion tokens learned from, per second of update", "tokens/s", "Speed"),
    "staleness/mean": MetricDoc(
        "Versions by which the weights that sampled a token are behind those that learn from it, mean over tokens",
        "versions",
        "Staleness",
    ),
    "staleness/max": MetricDoc("The same of the oldest token", "versions", "Staleness"),
    "staleness/frac/{k}": MetricDoc(
        "Tokens whose weights are k versions behind; absent beyond the oldest", "fraction", "Staleness"
    ),
    "staleness/mixed_frac": MetricDoc(
        "Completions during which the weights changed (rollout.in_flight)", "fraction", "Staleness"
    ),
    "idle/rollout": MetricDoc(
        "Time since the row before in which a rollout worker had no call, mean over them (rl/timeline.py)",
        "fraction",
        "Idle",
    ),
    "idle/reward": MetricDoc("The same of the reward workers", "fraction", "Idle"),
    "idle/learner": MetricDoc("The same of the learner's ranks", "fraction", "Idle"),
    "time/wait_rollout": MetricDoc("The learner waiting for the step's completions and verdicts", "seconds", "Time"),
    "time/wait_learner": MetricDoc(
        "Samplers with nothing to do between the batch before and this one: weights to come", "seconds", "Time"
    ),
    "time/rollout": MetricDoc("Sampling the completions", "seconds", "Time"),
    "time/verify": MetricDoc("Waiting for verdicts", "seconds", "Time"),
    "time/update": MetricDoc("Learning: log-probs, loss, gradient, optimiser", "seconds", "Time"),
    "time/weight_sync": MetricDoc(
        "Publishing the new weights; ahead of the learner, samplers load them while it goes on", "seconds", "Time"
    ),
    "time/eval": MetricDoc(
        "Evaluation on held-out problems, and waiting until what is sampled ahead is done", "seconds", "Time"
    ),
    "time/checkpoint": MetricDoc(
        "Copying the state for a checkpoint, which is written while the run goes on, and waiting likewise",
        "seconds",
        "Time",
    ),
    "time/step": MetricDoc("The whole step", "seconds", "Time"),
    "time/total": MetricDoc("Since the run started, without the pauses between stop and resume", "seconds", "Time"),
    "tokens/completion": MetricDoc("Completion tokens sampled in this step", "tokens", "Progress"),
    "tokens/total": MetricDoc("Completion tokens sampled since the run started", "tokens", "Progress"),
    "weights/version": MetricDoc("Version of the weights after this step", "count", "Progress"),
    "worker/restarts": MetricDoc("Workers restarted since the run started", "count", "Progress"),
    "worker/learner_restarts": MetricDoc(
        "Times the run went on from a checkpoint after a learner died, since it started", "count", "Progress"
    ),
    "worker/prompts_set_aside": MetricDoc(
        "Prompts left out because sampling them killed workers, since the run started (faults.jsonl)",
        "count",
        "Progress",
    ),
    "worker/answers_set_aside": MetricDoc(
        "Answers without a score because scoring them killed workers, since the run started (faults.jsonl)",
        "count",
        "Progress",
    ),
    "data/epoch": MetricDoc("Passes over the training problems so far", "epochs", "Progress"),
    "alert/entropy": MetricDoc(
        "1 while entropy is far below where it started (alerts.entropy_share)", "0 or 1", "Alerts"
    ),
    "alert/reward": MetricDoc("1 while the reward is far below its best (alerts.reward_drop)", "0 or 1", "Alerts"),
    "alert/mismatch": MetricDoc("1 where sampler and learner disagree (alerts.mismatch_k3)", "0 or 1", "Alerts"),
    "alert/skipped": MetricDoc("1 where an optimizer step was left out", "0 or 1", "Alerts"),
    "sft/loss": MetricDoc("Warm start: cross-entropy per completion token", "nats", "Warm start"),
    "sft/token_accuracy": MetricDoc("Warm start: completion tokens the model ranks first", "fraction", "Warm start"),
}


def read_curve(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics without what depends on the machine: two runs of the same seed have the same."""
    rows = read_jsonl(run_dir / METRICS_FILE)
    return [{name: x for name, x in row.items() if not name.startswith(OF_THE_MACHINE)} for row in rows]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", lambda m: r"\d+" if m[1] == "k" else "[^/]+", re.escape(name)))


_PATTERNS = {name: _pattern(name) for name in METRICS if "{" in name}


def metric_doc(name: str) -> MetricDoc:
    """Look up what a metric is called and means.

    Raises:
        ValueError: `name` is not in METRICS and fits none of its patterns; the message names the nearest known one.
    """
    if name in METRICS and name not in _PATTERNS:
        return METRICS[name]
    for known, pattern in _PATTERNS.items():
        if pattern.fullmatch(name) and "{" not in name:
            return METRICS[known]
    nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown metric {name!r}, nearest known: {nearest!r}; new ones go into METRICS in rl/metrics.py")


def metrics_table() -> str:
    """The table of metrics in Markdown."""
    rows = [
        f"| `{name}` | {doc.unit} | {doc.description.replace('|', chr(92) + '|')} |" for name, doc in METRICS.items()
    ]
    return "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows])


class MetricsWriter:
    """Appends one row of metrics a step to `run_dir/metrics.jsonl` and mirrors it to wandb and TensorBoard.

    To resume, call `truncate_after(run_dir / "metrics.jsonl", step)` first.

    Args:
        run_dir: folder of the run; made if missing.
        config: the resolved configuration, for wandb.
        wandb_mode: "auto" is online for a user who is logged in to wandb, else offline (no network is used).
        project, name: how wandb files the run.
        tensorboard: also write TensorBoard event files; ValueError where the package is missing.
    """

    def __init__(
        self,
        run_dir: Path | str,
        config: Mapping[str, Any],
        wandb_mode: WandbMode,
        project: str,
        name: str,
        *,
        tensorboard: bool = False,
    ) -> None:
        if wandb_mode not in WANDB_MODES:
            raise ValueError(f"wandb mode {wandb_mode!r} is none of {', '.join(WANDB_MODES)}")
        self._tensorboard = TensorBoardRun(Path(run_dir)) if tensorboard else None
        self._rows = JsonlWriter(Path(run_dir) / METRICS_FILE)
        self._wandb = WandbRun(Path(run_dir), redacted_tree(config), wandb_mode, project, name)

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write one row; NaN and infinity are stored as null.

        Raises:
            ValueError: a name is not in METRICS; nothing is written then.
        """
        for name in values:
            metric_doc(name)
        row = {"step": step} | {name: _plain_number(value) for name, value in values.items()}
        self._rows.append(row)
        self._wandb.log(row)
        if self._tensorboard is not None:
            self._tensorboard.log(row)

    def close(self) -> None:
        """Close the files and finish the wandb run."""
        self._rows.close()
        self._wandb.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class SampleRow(TypedDict):
    """One completion with its verdict, as the report's sample browser shows it."""

    step: int
    split: Literal["train", "eval"]
    prompt: str
    completion: str
    gold: str
    score: float
    kind: str
    extracted: str | None
    seconds: float
    finish_reason: str
    weight_version: int
    group: int
    tokens: NotRequired[int]
    extra: NotRequired[dict[str, Any]]


class SampleWriter:
    """Appends sampled completions to `run_dir/samples.jsonl`."""

    def __init__(self, run_dir: Path | str) -> None:
        self._rows = JsonlWriter(Path(run_dir) / SAMPLES_FILE)

    def log(self, rows: Iterable[SampleRow]) -> None:
        """Write one line for each completion."""
        for row in rows:
            self._rows.append(row)

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


def _plain_number(value: SupportsFloat) -> int | float:
    """A Python number from a numpy or torch scalar, whole numbers staying whole."""
    return int(value) if isinstance(value, Integral) else float(value)


if __name__ == "__main__":
    print(metrics_table())
