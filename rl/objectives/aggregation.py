"""From the losses of tokens to the loss of the batch, normalised by counts of the whole global batch.

Each aggregation is a sum over tokens of loss × weight, divided by a number that all ranks and micro-batches share:
that is why the gradient does not depend on how the batch is split.

    token_mean      Σ_i Σ_t loss / Σ_i |y_i|             DAPO, arXiv 2503.14476, Eq. 8
    sequence_mean   Σ_i (Σ_t loss / |y_i|) / N           GRPO, arXiv 2402.03300, Eq. 3
    constant        Σ_i Σ_t loss / (N · max_tokens)      Dr. GRPO, arXiv 2503.20783, section 3.1
"""

from torch import Tensor

from deltarl.rl.objectives.config import Aggregation


def token_weights(kind: Aggregation, lengths: Tensor) -> Tensor | None:
    """`[n]` weights of the tokens of answers of `lengths` `[N]`; None where they are all 1."""
    if kind != "sequence_mean":
        return None
    return (1 / lengths.double()).float().repeat_interleave(lengths)


def divisor(kind: Aggregation, tokens: int, answers: int, max_tokens: int) -> int:
    """What the weighted sum is divided by, from the global batch's completion tokens and answers.

    Args:
        max_tokens: longest possible answer, the constant of Dr. GRPO.
    """
    return {"token_mean": tokens, "sequence_mean": answers, "constant": answers * max_tokens}[kind]
