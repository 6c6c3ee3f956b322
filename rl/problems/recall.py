"""Pairs of keys and values, and some keys to recall: multi-query associative recall (MQAR) as text."""

import random
import string
from collections.abc import Iterator

from deltarl.rl.problems.filling import fill
from deltarl.rl.problems.registry import Draft, Size, sized_family

QUERIES = {1: 1, 2: 2, 3: 4, 4: 8}
_KEY_LETTERS = 3
_MAX_DRAWS = 1000


@sized_family("recall", levels=QUERIES)
def recall(rng: random.Random, level: int, size: Size) -> Draft:
    """Levels ask for 1, 2, 4, 8 of the keys, which have three letters; a value is one of 90."""
    values = dict[str, int]()

    def pairs() -> Iterator[str]:
        while True:
            key = _new_key(rng, values)
            values[key] = rng.randint(10, 99)
            yield f" {key}={values[key]}"

    more = pairs()
    least = [next(more) for _ in range(QUERIES[level] + 1)]  # one that is not asked, so that order is not enough
    asked = "\nValues of" + " aaa" * QUERIES[level] + "?"
    taken = least + fill(size, ["Pairs:", *least, asked], more, f"recall level {level}", misses=0)
    keys = rng.sample([pair[1 : 1 + _KEY_LETTERS] for pair in taken], QUERIES[level])
    text = "Pairs:" + "".join(taken) + f"\nValues of {' '.join(keys)}?"
    return Draft(text, " ".join(str(values[key]) for key in keys))


def _new_key(rng: random.Random, taken: dict[str, int]) -> str:
    for _ in range(_MAX_DRAWS):
        key = "".join(rng.choices(string.ascii_lowercase, k=_KEY_LETTERS))
        if key not in taken:
            return key
    raise ValueError(f"recall has too few keys for more than the {len(taken)} pairs there are; lower length")
