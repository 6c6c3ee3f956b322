"""The batch of one step: answers with their scores, and which of them to learn from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import DecidedBy, Reason, Verdict, VerdictKind
from deltarl.rl.data import EncodedPrompt
from deltarl.rl.episodes import Episodes
from deltarl.rollout.outputs import CompletionOutput, RequestOutput, RoutedExperts


@dataclass(frozen=True)
class Collected:
    episodes: Episodes
    """All that was sampled."""
    prompts: list[int]
    """Which of its prompts to learn from."""
    problems: list[int]
    """Which training problem each prompt is."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the choice."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each phase."""


TOKENS_FILE, REST_FILE = "batches.safetensors", "batches.json"
PER_TOKEN = {
    "token_ids": np.int64,
    "logprobs": np.float64,
    "sampling_logprobs": np.float64,
    "weight_versions": np.int64,
}


def save_batches(batches: Sequence[Collected], folder: Path) -> None:
    """Writes what is needed to learn from the batches, every number exactly: of their tokens as tensors, else as JSON.

    Raises:
        OSError: it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for i, batch in enumerate(batches):
        answers = [answer for group in batch.episodes.groups for answer in group.outputs]
        arrays[f"{i}/lengths"] = np.array([len(answer.token_ids) for answer in answers])
        for name, dtype in PER_TOKEN.items():
            arrays[f"{i}/{name}"] = np.concatenate([np.array(getattr(answer, name), dtype) for answer in answers])
        for j, answer in enumerate(answers):
            if answer.routed_experts is not None:
                arrays |= {f"{i}/{j}/{part}": x for part, x in answer.routed_experts._asdict().items()}
    try:
        save_file(arrays, folder / TOKENS_FILE)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / REST_FILE).write_text(json.dumps([asdict(_rest(batch)) for batch in batches]))


def load_batches(folder: Path, problems: Sequence[EncodedPrompt]) -> list[Collected]:
    """What `save_batches` wrote, of these training problems; nothing, if it wrote nothing there."""
    if not (folder / REST_FILE).exists():
        return []
    arrays, batches = load_file(folder / TOKENS_FILE), []
    for i, batch in enumerate(json.loads((folder / REST_FILE).read_text())):
        ends = np.cumsum(arrays[f"{i}/lengths"])[:-1]
        columns = {name: np.split(arrays[f"{i}/{name}"], ends) for name in PER_TOKEN}
        answers = iter(
            {name: parts[j].tolist() for name, parts in columns.items()} | {"routed_experts": _experts(arrays, i, j)}
            for j in range(len(ends) + 1)
        )
        episodes = batch["episodes"]
        episodes["prompts"] = [problems[p] for p in batch["problems"]]
        episodes["groups"] = [
            RequestOutput(
                **group | {"outputs": [CompletionOutput(**answer | next(answers)) for answer in group["outputs"]]}
            )
            for group in episodes["groups"]
        ]
        report = episodes["report"]
        if report["verdicts"] is not None:
            report["verdicts"] = [_verdict(**verdict) for verdict in report["verdicts"]]
        batches.append(Collected(**batch | {"episodes": Episodes(**episodes | {"report": ScoreReport(**report)})}))
    return batches


def _rest(batch: Collected) -> Collected:
    """The batch without what is per token, its prompts, which are those of its problems, and what the verifier parsed,
    which nobody asks for later."""
    bare: dict[str, Any] = dict.fromkeys([*PER_TOKEN, "routed_experts"])
    groups = [replace(g, outputs=[replace(a, **bare) for a in g.outputs]) for g in batch.episodes.groups]
    report = batch.episodes.report
    if report.verdicts is not None:
        report = replace(report, verdicts=[replace(v, pred=None, gold=None) for v in report.verdicts])
    return replace(batch, episodes=replace(batch.episodes, prompts=[], groups=groups, report=report))


def _verdict(kind: str, reason: str | None, decided_by: str | None, **rest: Any) -> Verdict:
    return Verdict(
        kind=VerdictKind(kind),
        reason=None if reason is None else Reason(reason),
        decided_by=None if decided_by is None else DecidedBy(decided_by),
        **rest,
    )


def _experts(arrays: dict[str, np.ndarray], batch: int, answer: int) -> RoutedExperts | None:
    if f"{batch}/{answer}/prompt" not in arrays:
        return None
    return RoutedExperts(*(arrays[f"{batch}/{answer}/{part}"] for part in RoutedExperts._fields))
