"""The most frequent words of a long list: the common words extraction of RULER (arXiv 2404.06654, section 3)."""

import random
from collections.abc import Iterator

from deltarl.rl.problems.filling import fill, new_word, new_words
from deltarl.rl.problems.registry import Draft, Size, sized_family

COMMON = {1: 1, 2: 3, 3: 10}
COMMON_TIMES, OTHER_TIMES = 10, 3


@sized_family("common_words", levels=COMMON)
def common_words(rng: random.Random, level: int, size: Size) -> Draft:
    """1, 3, 10 words stand there ten times each, all others at most three times. The answer is a set."""
    common = new_words(rng, COMMON[level], syllables=3)
    taken = dict.fromkeys(common)

    def others() -> Iterator[str]:
        while True:
            word = new_word(rng, taken, syllables=3)
            taken[word] = None
            for _ in range(OTHER_TIMES):
                yield f" {word}"

    words = [f" {word}" for word in common for _ in range(COMMON_TIMES)]
    which = "word is" if len(common) == 1 else f"{len(common)} words are"
    head, question = "Words:", f"\nWhich {which} most frequent?"
    # All words are of one length in letters: a few more tries are enough where tokens differ.
    words += fill(size, [head, *words, question], others(), f"common_words level {level}", misses=10)
    rng.shuffle(words)
    return Draft(head + "".join(words) + question, common)
