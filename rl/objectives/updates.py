"""How many optimizer steps an iteration makes, against entropy collapse."""


def adapted_updates(updates: int, entropy: float, min_entropy: float, most: int) -> int:
    """The optimizer steps of the next iteration: one fewer, to 1, where entropy is below its floor, else one more.

    Several steps on one batch sharpen the policy on what it has just sampled; a single one is on-policy. An entropy
    that is not a number changes nothing.

    Args:
        updates: of this iteration.
        entropy, min_entropy: mean of a token in this iteration, and its floor, in nats.
        most: steps while entropy is high enough.
    """
    if entropy < min_entropy:
        return max(1, updates - 1)
    return min(most, updates + 1) if entropy >= min_entropy else updates
