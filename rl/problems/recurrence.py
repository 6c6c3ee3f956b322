"""Terms of a sequence, each from the two before it: short to ask, long to work out, one line a term."""

import random

from deltarl.rl.problems.registry import Draft, family

# Level: fewest and most terms to work out. Levels 4 and 5 take 500 to 1,000 and 1,000 to 2,000 bytes.
LEVELS = {1: (2, 3), 2: (4, 6), 3: (8, 12), 4: (25, 41), 5: (49, 81)}
_FACTORS = (3, 7, 9)  # coprime to 100, so that no two pairs of terms are followed by the same pair


@family("recurrence", levels=LEVELS)
def recurrence(rng: random.Random, level: int) -> Draft:
    """The last two digits of a sum of multiples of the two terms before; the level is how many terms there are."""
    first, second = rng.sample(_FACTORS, 2)
    before, last = rng.randint(1, 99), rng.randint(1, 99)
    # Not all terms even or multiples of 5, which would leave fewer answers.
    while (before * last) % 2 == 0 or (before * last) % 5 == 0:
        before, last = rng.randint(1, 99), rng.randint(1, 99)
    start = f"a(1)={before}, a(2)={last}, a(n)=last two digits of {first}a(n-1)+{second}a(n-2)."
    terms = rng.randint(*LEVELS[level])
    steps = []
    for n in range(3, 3 + terms):
        total = first * last + second * before
        steps.append(f"{n}: {first}*{last}+{second}*{before}={total}->{total % 100}")
        before, last = last, total % 100
    return Draft(f"{start} a({2 + terms})?", last, steps)
