"""Drawing distinct problems of one split from a weighted mixture of families and levels."""

import random
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any, Literal

from pydantic import ConfigDict, PositiveFloat, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

from deltarl.rl.problems.registry import FAMILIES, Measure, Problem, Size, utf8_bytes

Split = Literal["train", "test"]

_ONE_IN_TEST = 5
# So many draws in a row without a new problem mean that a family and level is used up, or as good as.
_MAX_DRAWS = 10_000


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ProblemSource:
    """A family at one level, and its share of a mixture relative to the other sources."""

    family: str
    level: int
    weight: PositiveFloat = 1.0
    length: PositiveInt | None = None
    """Tokens of the problem's text, of the families whose problems are as long as they are asked to be."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            near = get_close_matches(self.family, FAMILIES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown problem family {self.family!r}; there are {', '.join(sorted(FAMILIES))}{hint}")
        levels = FAMILIES[self.family].levels
        if self.level not in levels:
            raise ValueError(
                f"problem family {self.family!r} has no level {self.level}; its levels are "
                f"{', '.join(map(str, levels))}"
            )
        if self.sized and self.length is None:
            raise ValueError(f"problems of family {self.family!r} have a length: give length, in tokens")
        if not self.sized and self.length is not None:
            sized = ", ".join(sorted(f.name for f in FAMILIES.values() if f.draw_sized is not None))
            raise ValueError(
                f"problems of family {self.family!r} have no length of their own, and length = {self.length} is given: "
                f"leave it out (families with a length are {sized})"
            )

    @property
    def sized(self) -> bool:
        """Whether problems of the family have a length."""
        return FAMILIES[self.family].draw_sized is not None

    def __str__(self) -> str:
        return f"{self.family} level {self.level}" + (f" length {self.length}" if self.sized else "")


_SOURCES = TypeAdapter(list[ProblemSource])


def split_of(problem: str) -> Split:
    """The split that the problem text belongs to, by its hash: about one text in five is a test problem."""
    digest = blake2b(problem.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) % _ONE_IN_TEST == 0 else "train"


def generate(
    spec: Sequence[ProblemSource | Mapping[str, Any]],
    split: Split,
    count: int,
    seed: int,
    measure: Measure = utf8_bytes,
) -> list[Problem]:
    """Draw `count` distinct problems of `split` from the mixture `spec`.

    Train and test are disjoint by construction: `split_of` assigns every possible text to one of them, so no seed,
    count or mixture can bring a training problem into the test set. (Texts, not meanings: `3+8` may be a training
    problem and `8+3` a test problem.)

    Args:
        spec: sources, or mappings with their fields, e.g. `[{"family": "arithmetic", "level": 2, "weight": 0.5}]`.
        split: "train" or "test".
        count: how many; a larger count gives the same problems followed by more.
        seed: the same spec, split, seed and measure give the same problems on every machine.
        measure: tokens of a text, for sources with a length; bytes by default.

    Raises:
        ValueError: an empty spec, an unknown family, level or key, a weight that is not above 0, a length that is
            missing or for which there is no problem, an unknown split, a negative count, or a source that has not
            enough distinct problems of this split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; it is 'train' or 'test'")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    sources = _SOURCES.validate_python(spec)
    if not sources:
        raise ValueError("the list of problem sources is empty; give at least one {family, level, weight}")
    rng = random.Random(f"deltarl problems {split} {seed}")
    weights = [source.weight for source in sources]
    seen: set[str] = set()
    problems: list[Problem] = []
    sources_of: list[ProblemSource] = []
    while len(problems) < count:
        source = rng.choices(sources, weights)[0]
        problem = _draw_new(source, split, seen, rng, measure)
        if problem is None:
            have = sum(drawn == source for drawn in sources_of)
            raise ValueError(
                f"{source} has only about {have} distinct {split} problems, too few for {count} of this mixture; "
                "ask for fewer, or add levels or families"
            )
        seen.add(problem.problem)
        problems.append(problem)
        sources_of.append(source)
    return problems


def _draw_new(
    source: ProblemSource, split: Split, seen: set[str], rng: random.Random, measure: Measure
) -> Problem | None:
    size = None if source.length is None else Size(source.length, measure)
    for _ in range(_MAX_DRAWS):
        problem = FAMILIES[source.family].make(rng, source.level, size)
        if problem.problem not in seen and split_of(problem.problem) == split:
            return problem
    return None
