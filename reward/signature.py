"""What a plug-in asks for, read from its parameters, its annotations and the names in its code."""

import dis
import functools
import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import CodeType
from typing import Any


class Signature:
    """The parameters of a plug-in.

    Attributes:
        positional_only: names that cannot be given by keyword.
        named: names that can.
        required: those of them without a default.
        takes_any: it has ``**kwargs``.

    Raises:
        ValueError, TypeError: Python cannot tell the parameters, as of some functions written in C.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        parameters = inspect.signature(fn).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.positional_only = [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY]
        self.named = [p.name for p in named]
        self.required = [p.name for p in named if p.default is p.empty]
        self.takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
        codes = list(_codes(fn))
        self._mentioned = {constant for code in codes for constant in code.co_consts if isinstance(constant, str)}
        self._content_is_looked_up = any(_looks_up(code, "content") for code in codes)
        self._completions = next((_annotation_text(p) for p in named if p.name == "completions"), "")

    def asks_for(self, name: str) -> bool:
        """Whether a parameter has this name, or ``**kwargs`` is there and the code looks the name up."""
        return name in self.named or (self.takes_any and name in self._mentioned)

    @property
    def wants_messages(self) -> bool:
        """Whether completions are chat messages to it: its annotation says so, or else its code looks up "content"."""
        if "dict" in self._completions.lower() or "list[list" in self._completions.lower():
            return True
        return "str" not in self._completions and self._content_is_looked_up


def _annotation_text(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _codes(fn: Callable[..., Any]) -> Iterator[CodeType]:
    """The code of a function, of those within it, and of the functions of its module that it uses."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    fn = fn if hasattr(fn, "__code__") else getattr(fn, "__call__", fn)  # noqa: B004  (an object with __call__)
    pending: list[CodeType] = [fn.__code__] if hasattr(fn, "__code__") else []
    scope: dict[str, Any] = getattr(fn, "__globals__", {})
    seen: set[CodeType] = set()
    while pending:
        code = pending.pop()
        if code in seen:
            continue
        seen.add(code)
        yield code
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        helpers = [scope[name] for name in code.co_names if inspect.isfunction(scope.get(name))]
        pending += [helper.__code__ for helper in helpers if helper.__module__ == fn.__module__]


def _looks_up(code: CodeType, key: str) -> bool:
    """Whether the code has ``x[key]`` or ``x.get(key)``; the key alone could also be searched for in a text."""
    for first, second in pairwise(dis.get_instructions(code)):
        if first.argval == key and second.opname == "BINARY_SUBSCR":
            return True
        if second.argval == key and first.opname in ("LOAD_METHOD", "LOAD_ATTR") and first.argval == "get":
            return True
    return False
