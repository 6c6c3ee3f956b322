"""A sentence to find in a long text: the needle tasks of RULER (arXiv 2404.06654, section 3)."""

import random
from collections.abc import Iterator

from deltarl.rl.problems.filling import fill, new_word, sentences, spread
from deltarl.rl.problems.registry import Draft, Size, sized_family

NEEDLES = {1: 1, 2: 4, 3: 4}
_ALL_NEEDLES = 3  # the level without other sentences


@sized_family("needle", levels=NEEDLES)
def needle(rng: random.Random, level: int, size: Size) -> Draft:
    """Level 1: one needle among dull sentences; 2: three more with other keys; 3: nothing but needles."""
    values = dict[str, int]()

    def needles() -> Iterator[str]:
        while True:
            key = new_word(rng, values, syllables=3)
            # Distinct, so that a right answer can only come of the right sentence.
            values[key] = value = _new_value(rng, values)
            yield f" The number of {key} is {value}."

    more = needles()
    found = [next(more) for _ in range(NEEDLES[level])]
    key = next(iter(values))
    head, question = "Remember the numbers.", f"\nWhat is the number of {key}?"
    hay = more if level == _ALL_NEEDLES else sentences(rng)
    taken = fill(size, [head, *found, question], hay, f"needle level {level}")
    # All at once, so that the first, which is asked for, is as often anywhere else.
    rng.shuffle(found)
    return Draft(head + "".join(spread(rng, found, taken)) + question, values[key])


def _new_value(rng: random.Random, taken: dict[str, int]) -> int:
    while (value := rng.randint(1_000_000, 9_999_999)) in taken.values():
        pass
    return value
