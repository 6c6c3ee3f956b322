"""From the command line to a `RunConfig`: a YAML recipe, `key=value` overrides, and errors a person can act on."""

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from deltarl.actor.redaction import redacted_tree
from deltarl.rl.config import RunConfig

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A configuration that cannot be run."""


def parse_config(description: str, argv: Sequence[str] | None = None) -> RunConfig:
    """Reads `--config FILE [key.sub=value ...]`; exits with a message on a bad one."""
    return read_config(config_parser(description), argv)[0]


def run_command(description: str, run: Callable[[RunConfig], None], argv: Sequence[str] | None = None) -> int:
    """The command line of a run: as `parse_config`, and `--dry-run`, which prints the plan instead of running it.

    Returns:
        The exit status: 0; 2 after an error, or where a dry run found something that would be refused.
    """
    parser = config_parser(description)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print sizes, memory, tokens, an estimate of time, and what is refused; run nothing",
    )
    config, args = read_config(parser, argv)
    return _print_plan(config) if args.dry_run else exit_status(lambda: run(config))


def config_parser(description: str) -> argparse.ArgumentParser:
    """With `--config FILE [key.sub=value ...]`, for more to be added."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, type=Path, help="YAML recipe, e.g. configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. seed=1 learner.learning_rate=3e-4")
    return parser


def read_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[RunConfig, argparse.Namespace]:
    args = parser.parse_intermixed_args(argv)
    try:
        return load_config(args.config, args.overrides), args
    except ConfigError as error:
        parser.exit(2, f"configuration error: {error}\n")


def _print_plan(config: RunConfig) -> int:
    from deltarl.rl.plan import make_plan  # imports torch

    plan = make_plan(config)
    print("\n".join([*plan.lines, *(f"would be refused: {why}" for why in plan.refused)]))
    return 2 if plan.refused else 0


def exit_status(run: Callable[[], None]) -> int:
    """Runs; 0, or 2 after a one-line message for whatever it raised, 130 if it was stopped by SIGINT or SIGTERM. The
    run's log.txt has the traceback."""
    try:
        run()
    except KeyboardInterrupt:
        log.debug("stopped by", exc_info=True)
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        log.debug("stopped by", exc_info=True)
        print(f"error: {getattr(error, 'cause', None) or error}", file=sys.stderr)  # from an actor, it comes wrapped
        return 2
    return 0


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of configuration keys")
    return data


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a recipe and applies overrides.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest valid one), or a value out of range.
    """
    data = read_mapping(path)
    for override in overrides:
        _apply(data, override)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


def dump_config(config: RunConfig) -> str:
    """The whole resolved configuration as YAML, with secrets of the environment replaced by their names."""
    return yaml.safe_dump(redacted_tree(config.model_dump(mode="json")), sort_keys=False)


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    for parent in parents:
        child = data.get(parent)
        data[parent] = data = child if isinstance(child, dict) else {}
    data[last] = _value(text)


def _value(text: str) -> Any:
    """As YAML reads it, except that `1e-4` is a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:
        return float(value) if isinstance(value, str) and "e" in value else value
    except ValueError:
        return value


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg']} (got {error['input']!r})" if key else error["msg"]
    *parents, unknown = error["loc"]
    known = _fields(parents)
    nearest = difflib.get_close_matches(str(unknown), known, n=1)
    meant = [str(part) for part in (*parents, *nearest)]
    hint = f"; did you mean {'.'.join(meant)!r}?" if nearest else f"; valid keys are {', '.join(known)}"
    return f"unknown key {key!r}{hint}"


def _fields(path: Sequence[Any]) -> list[str]:
    """Names of the fields of the section at `path`."""
    section: Any = RunConfig
    for part in path:
        if part not in section.model_fields:  # an index or a name within sections, whose type was already found
            continue
        section = _section_type(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_type(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((t for t in map(_section_type, getattr(annotation, "__args__", ())) if t), None)
