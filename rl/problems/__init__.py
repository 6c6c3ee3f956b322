"""Made-up problems whose answers are exact, by family and level of difficulty, some by length too.

A new family is one function under `@family("name", levels=...)` or `@sized_family` in a module imported below.
"""

from deltarl.rl.problems import (
    arithmetic,
    brackets,
    common_words,
    fraction,
    linear,
    needle,
    palindrome,
    recall,
    recurrence,
    repository,
    stacks,
    tracing,
    trade,
    word,
)
from deltarl.rl.problems.generate import ProblemSource, Split, generate, split_of
from deltarl.rl.problems.registry import (
    FAMILIES,
    Draft,
    Family,
    Measure,
    Problem,
    Size,
    family,
    sized_family,
    utf8_bytes,
)

__all__ = [
    "FAMILIES",
    "Draft",
    "Family",
    "Measure",
    "Problem",
    "ProblemSource",
    "Size",
    "Split",
    "arithmetic",
    "brackets",
    "common_words",
    "family",
    "fraction",
    "generate",
    "linear",
    "needle",
    "palindrome",
    "recall",
    "recurrence",
    "repository",
    "sized_family",
    "split_of",
    "stacks",
    "tracing",
    "trade",
    "utf8_bytes",
    "word",
]
