"""The batch of one step: answers with their scores, and which of them to learn from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from deltarl.rl.data import EncodedPrompt
from deltarl.rl.episodes import Episodes


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


_BATCHES = TypeAdapter(list[Collected])


def save_batches(batches: Sequence[Collected], file: Path) -> None:
    """Writes batches as JSON, every number exactly; what the verifier parsed, which nobody asks for later, is left
    out."""
    file.write_bytes(_BATCHES.dump_json([_without_trees(batch) for batch in batches]))


def load_batches(file: Path, problems: Sequence[EncodedPrompt]) -> list[Collected]:
    """What `save_batches` wrote, of these training problems."""
    found = _BATCHES.validate_json(file.read_bytes())
    return [replace(b, episodes=replace(b.episodes, prompts=[problems[i] for i in b.problems])) for b in found]


def _without_trees(batch: Collected) -> Collected:
    """The batch without prompts either, which are those of its problems."""
    report = batch.episodes.report
    if report.verdicts is not None:
        report = replace(report, verdicts=[replace(v, pred=None, gold=None) for v in report.verdicts])
    return replace(batch, episodes=replace(batch.episodes, prompts=[], report=report))
