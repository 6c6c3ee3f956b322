r"""A reward for answers that are texts, not mathematics: names, rows of symbols, sets of words."""

from collections.abc import Sequence

_BOX = "\\boxed{"


def exact_match(completions: list[str], answer: Sequence[str], unordered: Sequence[bool] | None = None) -> list[float]:
    r"""1 where the last ``\boxed{}`` after any ``</think>`` holds the answer character by character, else 0.

    Only runs of white space may differ. The answers of rows whose column ``unordered`` is true are sets: what stands
    between commas, in any order, all of it and each once. A box that is not closed is no answer,
    nor is one in thoughts that are not.
    """
    sets = [False] * len(completions) if unordered is None else unordered
    return [
        float((found := boxed_text(text)) is not None and _same(found, gold, bool(is_set)))
        for text, gold, is_set in zip(completions, answer, sets, strict=True)
    ]


def boxed_text(text: str) -> str | None:
    r"""What the last ``\boxed{}`` holds, with braces within it; None without one, or if it or a thought stays open."""
    _, closed, said = text.rpartition("</think>")
    _, box, content = said.rpartition(_BOX)
    if not box or ("<think>" in said and not closed):
        return None
    depth = 1
    for end, char in enumerate(content):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return content[:end]
    return None


def _same(found: str, gold: str, unordered: bool) -> bool:
    if not unordered:
        return found.split() == gold.split()
    return sorted(_elements(found)) == sorted(_elements(gold))


def _elements(text: str) -> list[list[str]]:
    return [part.split() for part in text.split(",")]
