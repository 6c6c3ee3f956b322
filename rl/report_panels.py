"""The panels of the report as data: which metrics share a chart, in which colours, on which axes."""

from collections.abc import Mapping
from dataclasses import dataclass

# Mid tones that read on white and on near-black; the page's script sets every other colour by theme.
BLUE = "#4c8df6"
TEAL = "#14a89c"
AMBER = "#e69f2e"
ROSE = "#e8596f"
VIOLET = "#9274f0"
GREEN = "#3fb06f"
GREY = "#8b96a8"


@dataclass(frozen=True)
class Line:
    """How one metric is drawn; `right` puts it on a second axis."""

    label: str
    color: str
    dash: str = "solid"
    right: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart of the report: its metrics, whether they stack up, and its axes."""

    title: str
    note: str
    lines: Mapping[str, Line]
    y_title: str = ""
    right_title: str = ""
    stacked: bool = False
    percent: bool = False
    log: bool = False


PANELS = (
    Panel(
        "Response length",
        "Right and wrong answers drifting apart is the first sign of length hacking.",
        {
            "len/mean": Line("mean", BLUE),
            "len/p95": Line("95th percentile", GREY, "dot"),
            "len/right": Line("right answers", GREEN),
            "len/wrong": Line("other answers", ROSE),
        },
        y_title="tokens",
    ),
    Panel(
        "Verdicts",
        "What the verifier said about the training completions.",
        {
            "verdict/right_frac": Line("right", GREEN),
            "verdict/wrong_frac": Line("wrong", ROSE),
            "verdict/no_answer_frac": Line("no answer", AMBER),
            "verdict/unparsable_frac": Line("unparsable", VIOLET),
            "verdict/timeout_frac": Line("timeout", GREY),
            "verdict/error_frac": Line("error", TEAL),
        },
        stacked=True,
        percent=True,
    ),
    Panel(
        "Group composition",
        "Only mixed groups carry a learning signal.",
        {
            "group/frac_all_right": Line("all right", GREEN),
            "group/frac_mixed": Line("mixed", BLUE),
            "group/frac_all_wrong": Line("all wrong", ROSE),
        },
        stacked=True,
        percent=True,
    ),
    Panel(
        "Critic",
        "Explained variance near 1: the critic foresees the score; at or below 0, advantages are better without it.",
        {
            "value/explained_variance": Line("explained variance", BLUE),
            "clip/frac_value": Line("values clipped", GREY, "dot"),
            "loss/value": Line("loss", AMBER, right=True),
        },
        y_title="fraction",
        right_title="loss",
    ),
    Panel(
        "KL divergence",
        "How far the policy has moved: from the reference model, and within one step.",
        {"kl/ref": Line("to the reference", BLUE), "kl/old": Line("to the policy before the update", AMBER)},
        y_title="nats per token",
    ),
    Panel(
        "Entropy",
        "Uncertainty over the next token; a fall to zero means exploration has ended.",
        {"entropy": Line("entropy", VIOLET)},
        y_title="nats",
    ),
    Panel(
        "Clip fraction",
        "Tokens whose importance ratio left the trust region.",
        {"clip/frac_low": Line("low end", BLUE), "clip/frac_high": Line("high end", ROSE)},
        percent=True,
    ),
    Panel(
        "Sampler against learner",
        "The same token scored by both, at the same weights unless samplers are ahead. Zeros have no place there.",
        {
            "mismatch/logprob_abs_max": Line("largest", ROSE),
            "mismatch/logprob_abs_mean": Line("mean", BLUE),
        },
        y_title="|Δ log-prob|, nats",
        log=True,
    ),
    Panel(
        "Gradient norm and learning rate",
        "Before gradient clipping.",
        {"optim/grad_norm": Line("gradient norm", TEAL), "optim/lr": Line("learning rate", GREY, "dot", right=True)},
        y_title="norm",
        right_title="learning rate",
    ),
    Panel(
        "Throughput",
        "Tokens per second of the phase's own time.",
        {"tok_s/rollout": Line("sampling", BLUE), "tok_s/train": Line("learning", AMBER)},
        y_title="tokens/s",
    ),
    Panel(
        "Time per phase",
        "Where the seconds of a step go.",
        {
            "time/rollout": Line("rollout", BLUE),
            "time/verify": Line("verify", VIOLET),
            "time/update": Line("update", AMBER),
            "time/weight_sync": Line("weight sync", TEAL),
            "time/eval": Line("evaluation", GREEN),
            "time/checkpoint": Line("checkpoint", GREY),
        },
        y_title="seconds",
        stacked=True,
    ),
    Panel(
        "Waiting and staleness",
        "Seconds of a step in which one side had nothing to do. rollout.max_staleness trades them for older answers.",
        {
            "time/wait_rollout": Line("learner waits for answers", AMBER),
            "time/wait_learner": Line("samplers wait for weights", BLUE),
            "time/step": Line("the whole step", GREY, "dot"),
            "staleness/mean": Line("staleness", ROSE, right=True),
        },
        y_title="seconds",
        right_title="versions",
    ),
    Panel(
        "Age of the tokens",
        "Share of the tokens whose weights are behind those that learn from them; the rest are of the same version.",
        {
            "staleness/frac/1": Line("1 version", BLUE),
            "staleness/frac/2": Line("2 versions", AMBER),
            "staleness/frac/3": Line("3 versions", ROSE),
            "staleness/frac/4": Line("4 versions", VIOLET),
        },
        stacked=True,
        percent=True,
    ),
    Panel(
        "Idle workers",
        "Share of the time in which the workers of a fleet had no call, mean over them.",
        {
            "idle/rollout": Line("rollout workers", BLUE),
            "idle/reward": Line("reward workers", VIOLET),
            "idle/learner": Line("learner", AMBER),
        },
        percent=True,
    ),
)
WARM_START = Panel(
    "Supervised warm start",
    "Before RL: learning the answer format from worked solutions.",
    {"sft/loss": Line("loss", AMBER), "sft/token_accuracy": Line("token accuracy", TEAL, right=True)},
    y_title="nats per token",
    right_title="token accuracy",
)
