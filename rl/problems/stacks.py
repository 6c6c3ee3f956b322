"""Pushes to and pops from 64 stacks, and some pops to answer: the stack task of the Kimi Linear paper as text."""

import random
import string
from collections import defaultdict
from collections.abc import Iterator

from deltarl.rl.problems.filling import fill
from deltarl.rl.problems.registry import Draft, Size, sized_family

POPS = {1: 1, 2: 4, 3: 16}
STACKS = 64
_PUSH_SHARE = 0.6


@sized_family("stacks", levels=POPS)
def stacks(rng: random.Random, level: int, size: Size) -> Draft:
    """`+07k` pushes k onto stack 7, `-07` pops it. Levels ask for the next 1, 4, 16 elements to be popped."""
    asked = POPS[level]
    operations = list[tuple[int, str]]()  # an element, or "" for a pop

    def text() -> Iterator[str]:
        owners = list[int]()  # the stack of every element there is
        while True:
            # As many elements stay as will be asked for.
            if len(owners) > asked and rng.random() > _PUSH_SHARE:
                i = int(rng.random() * len(owners))
                owners[i], owners[-1] = owners[-1], owners[i]
                stack = owners.pop()
                operations.append((stack, ""))
                yield f" -{stack:02d}"
            else:
                stack, element = int(rng.random() * STACKS), rng.choice(string.ascii_lowercase)
                operations.append((stack, element))
                owners.append(stack)
                yield f" +{stack:02d}{element}"

    more = text()
    least = [next(more) for _ in range(asked)]
    fixed = ["Stacks:", *least, "\nPop" + " 00" * asked + "?"]
    taken = least + fill(size, fixed, more, f"stacks level {level}", misses=0)
    contents = defaultdict[int, list[str]](list)
    for stack, element in operations[: len(taken)]:
        if element:
            contents[stack].append(element)
        else:
            contents[stack].pop()
    pops = _pops(rng, contents, asked)
    answer = [contents[stack].pop() for stack in pops]
    return Draft("Stacks:" + "".join(taken) + f"\nPop {' '.join(f'{s:02d}' for s in pops)}?", " ".join(answer))


def _pops(rng: random.Random, contents: dict[int, list[str]], count: int) -> list[int]:
    """Stacks to pop, none more often than it has elements."""
    return rng.sample(list(contents), count, counts=[len(elements) for elements in contents.values()])
