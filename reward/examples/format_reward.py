"""A reward plug-in: a small bonus for exactly one boxed answer.

Used as ``deltarl.reward.examples.format_reward:format_reward``, or by the path of a copy of this file.
"""


def format_reward(completions: list[str], **columns: list[object]) -> list[float]:
    r"""0.1 for each completion with exactly one ``\boxed{``, else 0."""
    return [0.1 if completion.count(r"\boxed{") == 1 else 0.0 for completion in completions]
