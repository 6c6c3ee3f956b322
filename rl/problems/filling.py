"""What problems with a length are made of: made-up words, dull sentences, and as many pieces as fit."""

import random
from collections.abc import Collection, Iterator, Sequence

from deltarl.rl.problems.registry import Size

_MISSES = 30  # so many pieces in a row that do not fit any more, and what is left stays empty
_MAX_DRAWS = 1000

_SUBJECTS = ("The river", "A cart", "The old mill", "Our neighbour", "The baker", "A grey cat", "The train", "Rain")
_VERBS = ("waits", "goes by", "is late", "turns", "rests", "moves on", "comes back", "stays", "is quiet")
_SHORT, _SHORT_SHARE = (" Yes.", " Well.", " So it goes."), 0.15  # for what is left when no other fits
_PLACES = ("", " near the bridge", " at noon", " behind the barn", " again", " for a while", " in the valley")


def fill(size: Size, fixed: Sequence[str], pieces: Iterator[str], what: str, misses: int = _MISSES) -> list[str]:
    """As many of `pieces` as make, together with `fixed`, a text of at most `size.tokens` tokens and hardly fewer.

    A piece that does not fit is passed over for a shorter one that may come. Tokens are counted text by text, with what
    stands between them (a space, a line break) part of a text: where the tokenizer joins over these bounds, which is
    rare, the whole has a little fewer.

    Args:
        what: the family and level, for the error.
        misses: how many pieces in a row may not fit before the text counts as full.

    Raises:
        ValueError: `fixed` alone is longer than that.
    """
    needed = sum(map(size.measure, fixed))
    if needed > size.tokens:
        raise ValueError(
            f"{what} needs a length of about {needed} tokens at least, got {size.tokens}; raise length, or take an "
            "easier level"
        )
    room, missed, taken = size.tokens - needed, 0, list[str]()
    while room > 0 and missed <= misses:
        piece = next(pieces)
        tokens = size.measure(piece)
        if tokens <= room:
            taken.append(piece)
            room, missed = room - tokens, 0
        else:
            missed += 1
    return taken


def spread(rng: random.Random, needles: Sequence[str], hay: Sequence[str]) -> list[str]:
    """The needles, in their order, at random places among the hay."""
    places = sorted(rng.randint(0, len(hay)) for _ in needles)
    mixed = list(hay)
    for shift, (place, needle) in enumerate(zip(places, needles, strict=True)):
        mixed.insert(place + shift, needle)
    return mixed


def sentences(rng: random.Random) -> Iterator[str]:
    """Sentences that say nothing of numbers or names, each with a space before it, without end."""
    while True:
        if rng.random() < _SHORT_SHARE:
            yield rng.choice(_SHORT)
        else:
            yield f" {rng.choice(_SUBJECTS)} {rng.choice(_VERBS)}{rng.choice(_PLACES)}."


def new_word(rng: random.Random, taken: Collection[str], syllables: int = 2) -> str:
    """A made-up word that is not among `taken`, such as "kelu" (2 syllables: 10,000 words, 3: a million).

    Raises:
        ValueError: there is hardly one left.
    """
    for _ in range(_MAX_DRAWS):
        word = "".join(rng.choice("bcdfghjklmnpqrstvwxz") + rng.choice("aeiou") for _ in range(syllables))
        if word not in taken:
            return word
    raise ValueError(f"too few words of {syllables} syllables for a text that has {len(taken)} already; lower length")


def new_words(rng: random.Random, count: int, syllables: int = 2) -> list[str]:
    """Distinct made-up words."""
    words = dict[str, None]()
    while len(words) < count:
        words[new_word(rng, words.keys(), syllables)] = None
    return list(words)
