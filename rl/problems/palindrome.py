"""A row of symbols to give back in reverse: the palindrome task of the Kimi Linear paper (section 5.1) as text."""

import random
import string

from deltarl.rl.problems.registry import Draft, Size, sized_family

ALPHABETS = {1: string.digits, 2: string.ascii_lowercase}


@sized_family("palindrome", levels=ALPHABETS)
def palindrome(rng: random.Random, level: int, size: Size) -> Draft:
    """Level 1 is of digits, 2 of letters. The answer is as long as the row: nearly `size` in bytes."""
    symbols = rng.choices(ALPHABETS[level], k=size.tokens)

    def text(count: int) -> str:
        return f"Reverse: {''.join(symbols[:count])}"

    if size.measure(text(2)) > size.tokens:
        raise ValueError(
            f"palindrome needs a length of at least {size.measure(text(2))} tokens, got {size.tokens}; raise length"
        )
    while size.measure(text(len(symbols))) <= size.tokens:  # tokens of several symbols
        symbols += rng.choices(ALPHABETS[level], k=size.tokens)
    low, high = 2, len(symbols)  # the largest count that fits is at least low and at most high
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size.measure(text(middle)) <= size.tokens else (low, middle - 1)
    return Draft(text(low), "".join(reversed(symbols[:low])))
