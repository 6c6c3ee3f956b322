"""Which examples a step trains on: a pure function of the step, so that a resumed run needs no saved cursor."""

import numpy as np


def batch_indices(num_examples: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the examples in the batch of `step` (the first is 0).

    Every epoch goes through all examples once, in an order of its own. A batch may reach over the edge of an epoch;
    there, and only there, it can hold an example twice.

    Raises:
        ValueError: the batch is empty or larger than the data, or the step or the seed is negative.
    """
    _check_sizes(num_examples, batch_size)
    if step < 0 or seed < 0:
        raise ValueError(f"step and seed must not be negative, got step {step} and seed {seed}")
    return epoch_run(num_examples, step * batch_size, batch_size, [seed])


def epoch_run(num_examples: int, first: int, count: int, seed: list[int]) -> list[int]:
    """`count` indices from place `first` on, of epochs that each go through all examples in an order of their own."""
    indices: list[int] = []
    while len(indices) < count:
        epoch, start = divmod(first + len(indices), num_examples)
        order = np.random.Generator(np.random.PCG64([*seed, epoch])).permutation(num_examples)
        indices += order[start : start + count - len(indices)].tolist()
    return indices


def epoch_of(num_examples: int, batch_size: int, step: int) -> float:
    """Epochs done before `step` (the first is 0); 1.5 is half-way through the second.

    Raises:
        ValueError: the batch is empty or larger than the data.
    """
    _check_sizes(num_examples, batch_size)
    return step * batch_size / num_examples


def _check_sizes(num_examples: int, batch_size: int) -> None:
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"a batch of {batch_size} cannot be drawn from {num_examples} examples; "
            f"choose a batch size from 1 to {num_examples}, or give more examples"
        )
