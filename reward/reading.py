"""Answer and gold texts as trees, or the reason why not; nothing raised, whatever the text."""

from dataclasses import dataclass

from deltarl.reward.choices import Choice, gold_choice
from deltarl.reward.exact import plainly_has_value
from deltarl.reward.extract import extract_answer
from deltarl.reward.limits import LimitError, ParseError, TooLargeError, UndecidedError, UndefinedError
from deltarl.reward.parse import parse_answer
from deltarl.reward.prose import bare_answer
from deltarl.reward.quick import compare_quickly
from deltarl.reward.tree import Node, is_scalar
from deltarl.reward.verdict import DecidedBy, Reason


@dataclass(frozen=True, slots=True)
class Unread:
    """A text that cannot be read; ``detail`` is safe to print."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Gold:
    """A reference answer: its text without what is around it, its tree, and the option it names if it is a letter.

    ``itself`` is how the quick comparison of ``node`` with the same object ends, where that is known.
    """

    text: str
    node: Node
    choice: Choice | None
    itself: tuple[bool, DecidedBy] | None = None


def read_answer(text: str) -> Node | Unread:
    """The tree of an extracted answer."""
    try:
        return parse_answer(text)
    except ParseError as error:
        return Unread(Reason.LIMITS if isinstance(error, LimitError) else Reason.UNREADABLE, str(error))
    except Exception as error:
        return Unread(Reason.UNREADABLE, type(error).__name__)  # no answer may end the run


def read_gold(text: str) -> Gold | Unread:
    r"""A reference answer: bare, with "Answer:" before it, an option such as ``B. 12 km``, or a solution with a box."""
    if not isinstance(text, str):
        return _unreadable(f"a {type(text).__name__}, not text; convert the column when the data is loaded")
    text = (extract_answer(text, trusted=True) if "boxed" in text else None) or text
    choice = gold_choice(text)
    if choice is not None:
        (text,) = choice.letters
    node = read_answer(text)
    bare = bare_answer(text.strip()) if isinstance(node, Unread) else None
    if bare is not None:
        text, node = bare, read_answer(bare)
    if isinstance(node, Unread):
        return _unreadable(node.detail)
    itself = None
    try:
        if not plainly_has_value(node):
            itself = compare_quickly(node, node)
        elif is_scalar(node):
            itself = True, DecidedBy.EXACT
    except UndefinedError as error:
        return _unreadable(f"has no value: {error}")
    except (UndecidedError, TooLargeError):
        pass
    except Exception as error:
        return _unreadable(type(error).__name__)  # no gold may end the run
    return Gold(text, node, choice, itself)


def _unreadable(detail: str) -> Unread:
    return Unread(Reason.GOLD_UNREADABLE, detail)
