"""Made-up math problems whose answers are exact, by family and level of difficulty.

A new family is one function under `@family("name", levels=...)` in a module imported below.
"""

from deltarl.rl.problems import arithmetic, brackets, fraction, linear, word
from deltarl.rl.problems.generate import ProblemSource, Split, generate, split_of
from deltarl.rl.problems.registry import FAMILIES, Draft, Family, Problem, family

__all__ = [
    "FAMILIES",
    "Draft",
    "Family",
    "Problem",
    "ProblemSource",
    "Split",
    "arithmetic",
    "brackets",
    "family",
    "fraction",
    "generate",
    "linear",
    "split_of",
    "word",
]
