"""A run's folder: who it belongs to, and the guard against mixing two runs in one."""

import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deltarl.actor.output import CHATTY
from deltarl.actor.redaction import RedactingFormatter, redacted_tree
from deltarl.rl.cli import ConfigError, dump_config
from deltarl.rl.config import RunConfig

CONFIG_FILE = "config.yaml"

# May differ when a run is resumed: they change how it runs, not what it computes (ranks: but for rounding).
FREE_KEYS = (
    "alerts",
    "hardware",
    "heartbeat",
    "in_process",
    "output_dir",
    "placement",
    "checkpoint",
    "logging",
    "reward.num_cpus",
    "rollout.num_cpus",
    "rollout.stuck_after",
    "rollout.weight_transport",
    "reward.stuck_after",
    "sft.checkpoint_interval",
    "learner.num_cpus",
    "learner.max_restarts",
    "learner.num_ranks",
    "learner.activation_checkpointing",
    "learner.sharding",
)


def open_run_dir(config: RunConfig) -> Path:
    """Makes the run's folder and writes the resolved config; opens it again to resume the same run.

    A folder in which nothing has been computed yet, because the data or a plug-in was refused, is free for another try.

    Raises:
        ConfigError: the folder holds a run with another configuration.
    """
    run_dir = config.run_dir
    file = run_dir / CONFIG_FILE
    started = any((run_dir / name).exists() for name in ("initial", "sft", "difficulty.json", "metrics.jsonl"))
    if started and file.exists() and file.stat().st_size:
        # Validated again, so that a key which is newer than the run has its default there too.
        try:
            stored = yaml.safe_load(file.read_text())
            # What may differ, and decides which other values are valid: a run is older than the key.
            stored.setdefault("placement", config.placement)
            found = RunConfig.model_validate(stored)
        except ValidationError as error:
            raise ConfigError(
                f"{run_dir} holds a run whose configuration this version cannot read ({error.errors()[0]['msg']}); "
                f"choose another name, e.g. name={config.name}-2, or delete the folder"
            ) from error
        before, now = (_flatten(redacted_tree(c.model_dump(mode="json"))) for c in (found, config))
        differ = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
        # A run may go on for more steps than it was first meant to, unless its learning rate depends on their number.
        free = (*FREE_KEYS, "steps") if config.learner.lr_schedule == "constant" else FREE_KEYS
        differ = [k for k in differ if not k.startswith(free)]
        if differ:
            changes = ", ".join(f"{k}: {before.get(k)} there, {now.get(k)} here" for k in differ[:3])
            raise ConfigError(
                f"{run_dir} holds a run with another configuration ({changes}); choose another name, "
                f"e.g. name={config.name}-2, or delete the folder"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".yaml.tmp")
    temporary.write_text(dump_config(config))
    temporary.replace(file)  # a kill leaves the one or the other, never half a file
    return run_dir


def log_to(run_dir: Path) -> None:
    """Sends log lines, without secrets of the environment, to the terminal and to run_dir/log.txt."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO)
    handlers: list[logging.Handler] = [terminal, logging.FileHandler(run_dir / "log.txt")]
    for handler in handlers:
        handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("deltarl").setLevel(logging.DEBUG)
    logging.basicConfig(level=logging.INFO, handlers=handlers)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_folder(run_dir: Path) -> Path:
    """Where the workers' own output is collected, a file for each: made if missing."""
    folder = run_dir.resolve() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{name}".lstrip(".")).items()}
