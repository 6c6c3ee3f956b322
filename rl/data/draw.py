"""Which problems a step trains on: several sources in proportion, each in its order."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltarl.rl.config.sampling import SamplingConfig
from deltarl.rl.data.order import epoch_run

MIXTURE_STREAM, CHOICE_STREAM = 1, 2  # keep random numbers of one seed apart
UNKNOWN_SUCCESS = 0.5  # of a problem never tried: worth a look
NEWEST = 0.5  # weight of the newest success rate in the running mean


class Draw:
    """Draws batches of problems, by their place in the list of all training problems.

    What is drawn is a function of the step, the seed and, with `prioritised`, of the success rates recorded so far,
    which `save` and `load` carry over a resume.
    """

    def __init__(
        self,
        sources: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        config: SamplingConfig,
        success: np.ndarray | None = None,
    ):
        """
        Args:
            sources: `[N]` the source of each problem.
            weights: of the sources, in any unit.
            success: `[N]` how often the starting model solves each problem, if that was measured.

        Raises:
            ValueError: the filter leaves a source without problems.
        """
        self._config, self._batch_size = config, batch_size
        self._edges = np.cumsum(weights) / np.sum(weights)
        everywhere = np.arange(len(sources))
        kept = np.ones(len(sources), dtype=bool)
        if success is not None:
            kept = (success >= config.min_success) & (success <= config.max_success)
        self._members = [everywhere[kept & (np.asarray(sources) == s)] for s in range(len(weights))]
        for s, members in enumerate(self._members):
            if not len(members):
                raise ValueError(
                    f"data.sampling.min_success = {config.min_success} and max_success = {config.max_success} leave "
                    f"none of the problems of training source {s + 1}; widen them"
                )
        self.kept = int(kept.sum())
        self._easiest_first: list[np.ndarray] = []
        if config.order == "curriculum":
            assert success is not None  # SamplingConfig sees to it
            self._easiest_first = [m[np.argsort(-success[m], kind="stable")] for m in self._members]
        self._success = np.full(len(sources), UNKNOWN_SUCCESS) if success is None else success.astype(np.float64)
        self._measured = success is not None
        self._tried: set[int] = set()

    def batch(self, step: int, seed: int) -> list[int]:
        """The problems of `step` (the first is 0)."""
        sources, before = self._mixture(step, seed)
        drawn = np.empty(self._batch_size, dtype=np.int64)
        for s, members in enumerate(self._members):
            places = np.flatnonzero(sources == s)
            if self._config.order == "shuffle":
                drawn[places] = members[epoch_run(len(members), int(before[s]), len(places), _own(seed, s))]
            elif len(places):
                rng = np.random.Generator(np.random.PCG64([seed, CHOICE_STREAM, s, step]))
                pool, weights = self._choice(s, step)
                again = len(places) > len(pool)
                drawn[places] = rng.choice(pool, len(places), replace=again, p=weights)
        return drawn.tolist()

    def record(self, problems: Sequence[int], success: Sequence[float]) -> None:
        """Takes in how often each of these problems was solved just now; only `prioritised` asks for it later."""
        if self._config.order != "prioritised":
            return
        for i, rate in zip(problems, success, strict=True):
            self._success[i] += (rate - self._success[i]) * (NEWEST if self._measured or i in self._tried else 1.0)
            self._tried.add(i)

    def save(self, file: Path) -> None:
        """Writes what `record` was told."""
        file.write_text(json.dumps({str(i): float(self._success[i]) for i in sorted(self._tried)}))

    def load(self, file: Path) -> None:
        """Restores what `save` wrote."""
        for i, rate in json.loads(file.read_text()).items():
            self._success[int(i)] = rate
            self._tried.add(int(i))

    def _mixture(self, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each place in the batch, and how many problems each source gave to earlier batches."""
        first, count = step * self._batch_size, len(self._members)
        if count == 1:
            return np.zeros(self._batch_size, dtype=np.int64), np.array([first])
        # From the first draw of the run on, so that the place in each source is known without being kept.
        points = np.random.Generator(np.random.PCG64([seed, MIXTURE_STREAM])).random(first + self._batch_size)
        sources = np.minimum(np.searchsorted(self._edges, points, side="right"), count - 1)
        return sources[first:], np.bincount(sources[:first], minlength=count)

    def _choice(self, source: int, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The problems of a source that may be drawn in `step`, and their probabilities; None is all the same."""
        config, members = self._config, self._members[source]
        if config.order == "curriculum":
            # Competence, Platanios et al. 2019 (arXiv 1903.09848, Eq. 7): the square root gives each new problem the
            # same time.
            start = config.curriculum_start**2
            reached = min(1.0, step / config.curriculum_steps * (1 - start) + start) ** 0.5
            return self._easiest_first[source][: max(1, round(reached * len(members)))], None
        rate = self._success[members]
        # The variance of a right-or-wrong score, which is what a group's advantages are made of.
        wanted = rate * (1 - rate)
        uniform = np.full(len(members), 1 / len(members))
        if wanted.sum() == 0:
            return members, uniform
        return members, config.uniform_share * uniform + (1 - config.uniform_share) * wanted / wanted.sum()


def _own(seed: int, source: int) -> list[int]:
    """The seed of a source's epochs; that of the first is the run's."""
    return [seed, source] if source else [seed]
