"""Metrics and sample rows of one step's episodes."""

from typing import Literal

import numpy as np

from deltarl.reward.verdict import VerdictKind
from deltarl.rl.episodes import Episodes
from deltarl.rl.metrics import SampleRow


def train_metrics(episodes: Episodes) -> dict[str, float]:
    """What a training step logs about its answers; a mean over nothing is NaN, stored as null."""
    scores, right, lengths = episodes.scores, episodes.right, episodes.lengths
    known = scores[~np.isnan(scores)]
    solved = right.mean(1)
    metrics = {
        "reward/mean": _mean(known),
        "reward/std": float(known.std()) if len(known) else float("nan"),
        "acc/train": float(right.mean()),
        "group/frac_all_right": float((solved == 1).mean()),
        "group/frac_all_wrong": float((solved == 0).mean()),
        "group/frac_mixed": float(((solved > 0) & (solved < 1)).mean()),
        "len/mean": float(lengths.mean()),
        "len/p95": float(np.percentile(lengths, 95)),
        "len/max": float(lengths.max()),
        "len/right": _mean(lengths[right]),
        "len/wrong": _mean(lengths[~right]),
        "len/truncated_frac": truncated_fraction(episodes),
        "tokens/completion": float(lengths.sum()),
    }
    for name, values in episodes.report.components.items():
        metrics[f"reward/{name}/mean"] = _mean(np.array([v for v in values if v is not None]))
    for name, logged in episodes.report.metrics.items():
        plugin, metric = name.rsplit("/", 1)
        metrics[f"reward/{plugin}/log/{metric}"] = _mean(np.array(logged))
    if episodes.report.verdicts:
        metrics |= {f"verdict/{kind}_frac": verdict_fraction(episodes, kind) for kind in VerdictKind}
        metrics["verdict/seconds_p95"] = float(np.percentile([v.seconds for v in episodes.report.verdicts], 95))
    return metrics


def staleness_metrics(episodes: Episodes, version: int) -> dict[str, float]:
    """By how many versions the weights that sampled a token are behind `version`, which learns from it: mean, largest,
    and the share of the tokens at each; and the share of the answers whose tokens do not all come from one version."""
    answers = [t.weight_versions for g in episodes.groups for t in g.outputs]
    behind = version - np.array([v for versions in answers for v in versions])
    return {f"staleness/frac/{k}": float(share) for k, share in enumerate(np.bincount(behind) / behind.size)} | {
        "staleness/mean": float(behind.mean()),
        "staleness/max": float(behind.max()),
        "staleness/mixed_frac": float(np.mean([len(set(versions)) > 1 for versions in answers])),
    }


def verdict_fraction(episodes: Episodes, kind: VerdictKind) -> float:
    """Share of the answers with this verdict; 0 where the verifier is not configured."""
    verdicts = episodes.report.verdicts or []
    return sum(v.kind is kind for v in verdicts) / max(1, len(verdicts))


def truncated_fraction(episodes: Episodes) -> float:
    """Share of the answers cut at the token limit."""
    return float(np.mean([t.finish_reason == "length" for group in episodes.groups for t in group.outputs]))


def sample_rows(episodes: Episodes, step: int, split: Literal["train", "eval"], count: int) -> list[SampleRow]:
    """`count` answers for the report's browser, spread evenly over the prompts and samples."""
    per_group = episodes.scores.shape[1]
    total = len(episodes.completions)
    rows: list[SampleRow] = []
    for flat in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist():
        prompt, index = divmod(flat, per_group)
        answer = episodes.groups[prompt].outputs[index]
        verdict = episodes.report.verdicts[flat] if episodes.report.verdicts else None
        score = episodes.report.scores[flat]
        row: SampleRow = {
            "step": step,
            "split": split,
            "prompt": episodes.prompts[prompt].text,
            "completion": episodes.completions[flat],
            "gold": episodes.prompts[prompt].example.answer,
            "score": float("nan") if score is None else score,
            "kind": str(verdict.kind) if verdict else "",
            "extracted": verdict.extracted if verdict else None,
            "seconds": verdict.seconds if verdict else 0.0,
            "finish_reason": answer.finish_reason,
            "weight_version": answer.weight_versions[-1],
            "group": prompt,
            "tokens": len(answer.token_ids),
        }
        if episodes.report.extras:
            row["extra"] = {name: values[flat] for name, values in episodes.report.extras.items()}
        rows.append(row)
    return rows


def _mean(x: np.ndarray) -> float:
    return float(x.mean()) if x.size else float("nan")
