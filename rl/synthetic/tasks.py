"""Batches of the three tasks as token ids, with the tokens that a model is to predict.

The paper gives the tasks, the 64 stacks, the model's size and the lengths. The number of symbols, keys and queries is
our choice: 128 symbols, 1,024 keys, and every key that is shown is asked for once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

SEPARATOR, PUSH, POP = 3, 4, 5  # after padding, beginning and end, which have 0 to 2 in every model made here
SYMBOLS, KEYS, STACKS = 128, 1024, 64
_SYMBOL, _KEY, _STACK = 6, 6 + SYMBOLS, 6 + SYMBOLS + KEYS  # first ids
VOCAB_SIZE = _STACK + STACKS


class Batch(NamedTuple):
    ids: np.ndarray
    """`[B, T]` int64."""
    wanted: np.ndarray
    """`[B, T]` bool: tokens that the ones before them determine; never the first."""


def palindrome(rng: Generator, count: int, length: int) -> Batch:
    """Symbols, a separator, and the symbols in reverse, which are wanted. T is `length`, or one less if it is even."""
    half = (length - 1) // 2
    shown = rng.integers(_SYMBOL, _SYMBOL + SYMBOLS, (count, half))
    ids = np.concatenate([shown, np.full((count, 1), SEPARATOR), shown[:, ::-1]], 1)
    return Batch(ids, np.broadcast_to(np.arange(2 * half + 1) > half, ids.shape))


def mqar(rng: Generator, count: int, length: int) -> Batch:
    """Multi-query associative recall: pairs of a key and its value, then all pairs again in another order; there the
    values are wanted. T is `length` down to a multiple of 4, a quarter of it pairs."""
    pairs = length // 4
    if pairs > KEYS:
        raise ValueError(f"mqar has {KEYS} keys, and length = {length} needs {pairs}: length is at most {4 * KEYS}")
    keys = rng.permuted(np.tile(np.arange(_KEY, _KEY + KEYS), (count, 1)), axis=1)[:, :pairs]
    values = rng.integers(_SYMBOL, _SYMBOL + SYMBOLS, (count, pairs))
    shown = np.stack([keys, values], 2)
    order = rng.permuted(np.tile(np.arange(pairs), (count, 1)), axis=1)
    asked = np.take_along_axis(shown, order[:, :, None], 1)
    ids = np.concatenate([shown, asked], 1).reshape(count, 4 * pairs)
    place = np.arange(4 * pairs)
    return Batch(ids, np.broadcast_to((place >= 2 * pairs) & (place % 2 == 1), ids.shape))


def stack(rng: Generator, count: int, length: int) -> Batch:
    """64 stacks: `push stack symbol` and `pop stack symbol` half and half; the symbols that are popped are wanted.

    T is `length` down to a multiple of 3. A stack is popped the more often the more it holds.
    """
    steps = length // 3
    ids = np.empty((count, steps, 3), np.int64)
    wanted = np.zeros((count, steps, 3), bool)
    for row in range(count):
        _stack_row(rng, ids[row], wanted[row])
    return Batch(ids.reshape(count, -1), wanted.reshape(count, -1))


def _stack_row(rng: Generator, ids: np.ndarray, wanted: np.ndarray) -> None:
    steps = len(ids)
    coins, places = rng.random(steps).tolist(), rng.random(steps).tolist()
    symbols = rng.integers(_SYMBOL, _SYMBOL + SYMBOLS, steps).tolist()
    contents: list[list[int]] = [[] for _ in range(STACKS)]
    owners = list[int]()  # the stack of every element there is
    rows = []
    for coin, place, symbol in zip(coins, places, symbols, strict=True):
        if owners and coin < 0.5:
            i = int(place * len(owners))
            owners[i], owners[-1] = owners[-1], owners[i]
            where = owners.pop()
            rows.append((POP, _STACK + where, contents[where].pop()))
        else:
            where = int(place * STACKS)
            owners.append(where)
            contents[where].append(symbol)
            rows.append((PUSH, _STACK + where, symbol))
    ids[:] = rows
    wanted[:, 2] = ids[:, 0] == POP


TASKS: dict[str, Callable[[Generator, int, int], Batch]] = {"palindrome": palindrome, "mqar": mqar, "stack": stack}


def make(task: str, rng: Generator, count: int, length: int) -> Batch:
    """A batch of `count` sequences of one of `TASKS`.

    Raises:
        ValueError: an unknown task, or a length that it does not have.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    if length < 16:
        raise ValueError(f"length must be at least 16 tokens, got {length}")
    return TASKS[task](rng, count, length)
