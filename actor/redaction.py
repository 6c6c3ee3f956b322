"""Keeping secrets of the environment out of what a run writes."""

import logging
import os
from typing import Any

_NAMES = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_SHORTEST = 8  # characters: a shorter value is no secret, and would be found in words that have nothing to do with it


def redacted(text: str) -> str:
    """`text` with the value of every environment variable that is named like a secret (WANDB_API_KEY, HF_TOKEN)
    replaced by the variable's name."""
    for name, value in os.environ.items():
        if name.upper().endswith(_NAMES) and len(value) >= _SHORTEST and value in text:
            text = text.replace(value, f"<{name}>")
    return text


def redacted_tree(tree: Any) -> Any:
    """The same of every string, keys included, in lists and dicts of lists and dicts."""
    if isinstance(tree, str):
        return redacted(tree)
    if isinstance(tree, dict):
        return {redacted_tree(key): redacted_tree(value) for key, value in tree.items()}
    return [redacted_tree(value) for value in tree] if isinstance(tree, list) else tree


class RedactingFormatter(logging.Formatter):
    """A line of the log, with its traceback, redacted."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
