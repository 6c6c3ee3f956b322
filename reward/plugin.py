"""Reward plug-ins: any function ``fn(prompts, completions, **dataset_columns) -> list[float | None]``."""

import importlib
import importlib.util
import inspect
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from types import ModuleType
from typing import Any

RewardFunction = Callable[..., Sequence[float | None]]

_EXCERPT_CHARS = 80
_MAX_SINGLE_CALLS = 64


class RewardPluginError(Exception):
    """A plug-in cannot be loaded, raised, or returned something other than one score for each completion."""


def load_reward(spec: str) -> RewardFunction:
    """The function named by ``path/to/file.py:function`` or ``dotted.module:function``.

    Raises:
        RewardPluginError: the file, module or function does not exist, fails to import, or is not callable.
    """
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        raise RewardPluginError(f"reward {spec!r} is not of the form path/to/file.py:function or module:function")
    module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    members = vars(module)
    if name not in members:
        found = sorted(key for key, value in members.items() if inspect.isfunction(value) and not key.startswith("_"))
        raise RewardPluginError(f"reward {spec!r}: no {name!r} in {source}; it has {', '.join(found) or 'no function'}")
    if not callable(members[name]):
        raise RewardPluginError(f"reward {spec!r}: {name!r} is a {type(members[name]).__name__}, not a function")
    return members[name]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RewardPluginError(f"reward file {str(path)!r} does not exist (looked in {Path.cwd()})")
    # A name of its own, so that two plug-ins of the same file name do not collide.
    name = f"deltarl_reward_plugin_{zlib.crc32(bytes(path.resolve())):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RewardPluginError(f"reward file {str(path)!r} fails to import: {error!r}") from error
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise RewardPluginError(f"reward module {name!r} fails to import: {error!r}") from error


def call_reward(
    fn: RewardFunction,
    prompts: Sequence[Any],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    name: str = "",
) -> list[float | None]:
    """Call a plug-in on a batch and check what it returns.

    Args:
        fn: the plug-in. It gets by keyword what its signature accepts: every column if it takes ``**kwargs``.
        prompts: N prompts.
        completions: N completions.
        columns: dataset columns of N values each.
        name: how errors call the plug-in; its function name by default.

    Returns:
        N scores; None skips a sample. Bools and numpy or torch scalars are converted.

    Raises:
        RewardPluginError: the plug-in needs a column that does not exist, raises, or returns the wrong number or type
            of scores, or one that is not finite.
    """
    name = name or (fn.__name__ if inspect.isfunction(fn) else repr(fn))
    batch = {**columns, "prompts": prompts, "completions": completions}
    accepted = _accepted(fn, batch, name)
    try:
        scores = fn(**accepted)
    except Exception as error:
        culprit = _find_culprit(fn, accepted, completions)
        raise RewardPluginError(f"reward {name!r} raised {type(error).__name__}: {error}{culprit}") from error
    return _checked(scores, len(completions), name)


def _accepted(fn: RewardFunction, batch: dict[str, Sequence[Any]], name: str) -> dict[str, Sequence[Any]]:
    parameters = inspect.signature(fn).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in parameters:
        if parameter.kind == parameter.POSITIONAL_ONLY:
            raise RewardPluginError(f"reward {name!r}: {parameter.name!r} is positional-only; columns go by keyword")
    missing = [p.name for p in named if p.default is p.empty and p.name not in batch]
    if missing:
        raise RewardPluginError(
            f"reward {name!r} needs {', '.join(map(repr, missing))}, which is no dataset column; "
            f"available: {', '.join(sorted(batch))}"
        )
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return batch
    return {p.name: batch[p.name] for p in named if p.name in batch}


def _find_culprit(fn: RewardFunction, accepted: dict[str, Sequence[Any]], completions: Sequence[str]) -> str:
    """Which sample makes the plug-in raise when called with it alone, as the end of an error message."""
    for index, completion in enumerate(completions[:_MAX_SINGLE_CALLS]):
        try:
            fn(**{key: [values[index]] for key, values in accepted.items()})
        except Exception:
            return f" (on sample {index}: {str(completion)[:_EXCERPT_CHARS]!r})"
    return ""


def _checked(scores: Any, expected: int, name: str) -> list[float | None]:
    if isinstance(scores, str | bytes | Mapping) or not isinstance(scores, Iterable) or not isinstance(scores, Sized):
        raise RewardPluginError(
            f"reward {name!r} returned a {type(scores).__name__}; it must return a list of {expected} floats"
        )
    if len(scores) != expected:
        raise RewardPluginError(f"reward {name!r} returned {len(scores)} scores for {expected} completions")
    return [_as_score(score, index, name) for index, score in enumerate(scores)]


def _as_score(score: Any, index: int, name: str) -> float | None:
    if score is None:
        return None
    try:
        if isinstance(score, str | bytes):
            raise TypeError  # float() would take "1.0"
        value = float(score)
    except (TypeError, ValueError):
        raise RewardPluginError(
            f"reward {name!r} returned a {type(score).__name__} for sample {index}; it must be a float or None"
        ) from None
    if not math.isfinite(value):
        raise RewardPluginError(f"reward {name!r} returned {value} for sample {index}; return None to skip a sample")
    return value
