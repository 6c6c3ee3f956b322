"""Finding reward plug-ins: a function in a file or module, or one that an installed package offers by name."""

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import zlib
from pathlib import Path
from types import ModuleType

from deltarl.reward.protocols import RewardFunction

ENTRY_POINTS = "deltarl.rewards"
"""The entry point group in which a package offers rewards."""

# Not entry points of our own: a Ray node runs a copy of the working folder, in which nothing is installed.
BUILT_IN = {
    name: f"deltarl.reward.shaping:{name}" for name in ("format_tags", "kimi_length", "soft_overlong", "repetition")
} | {"exact_match": "deltarl.reward.exact_match:exact_match"}


class RewardPluginError(Exception):
    """A plug-in cannot be loaded, raised, or returned something other than one score for each completion."""


def load_reward(spec: str) -> RewardFunction:
    """The function named by ``path/to/file.py:function``, ``dotted.module:function``, or a name alone.

    A name alone is a ready-made reward or an entry point in the group ``deltarl.rewards``.

    Raises:
        RewardPluginError: the file, module, function or entry point does not exist, fails to import, or is not
            callable; or several packages offer the name.
    """
    if ":" not in spec:
        spec = _offered(spec)
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise RewardPluginError(f"reward {spec!r} is not of the form path/to/file.py:function or module:function")
    module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    members = vars(module)
    if name not in members:
        found = sorted(key for key, value in members.items() if inspect.isfunction(value) and not key.startswith("_"))
        raise RewardPluginError(f"reward {spec!r}: no {name!r} in {source}; it has {', '.join(found) or 'no function'}")
    if not callable(members[name]):
        raise RewardPluginError(f"reward {spec!r}: {name!r} is a {type(members[name]).__name__}, not a function")
    function: RewardFunction = members[name]
    return function


def _offered(name: str) -> str:
    """The module:function that goes by this name."""
    offers = _offers(name)
    if not offers:
        if name.endswith(".py"):
            raise RewardPluginError(f"reward {name!r} is a file; name a function in it: {name}:function")
        known = sorted({*BUILT_IN, *(entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS))})
        raise RewardPluginError(
            f"reward {name!r} is not known: the names are math, {', '.join(known)}; for a function of your own write "
            "path/to/file.py:function or module:function"
        )
    if len(offers) > 1:
        raise RewardPluginError(f"reward {name!r} is offered more than once; write out one of {', '.join(offers)}")
    return offers[0]


def _offers(name: str) -> list[str]:
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
    built_in = [BUILT_IN[name]] if name in BUILT_IN else []
    return sorted({*built_in, *(f"{entry.module}:{entry.attr}" for entry in entries)})


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
