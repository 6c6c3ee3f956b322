"""Weights & Biases as a guest: it mirrors the metrics, and whatever goes wrong with it the run goes on without it."""

import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

WandbMode = Literal["auto", "online", "offline", "disabled"]
WANDB_MODES: tuple[WandbMode, ...] = ("auto", "online", "offline", "disabled")

# Seconds that an unreachable server may hold up the start and the end of a run (wandb's own default is 90 and forever).
INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 60.0


class WandbRun:
    """One wandb run with its files under `run_dir/wandb`; after the first failure every call does nothing.

    A run folder keeps its wandb id, so a resumed online run goes on with the curves it had.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], mode: WandbMode, project: str, name: str) -> None:
        self._run: Any = None
        if mode == "disabled":
            return
        try:
            self._run = _init(run_dir, config, mode, project, name)
        except Exception as error:  # wandb raises its own, grpc's and OS errors; none may stop training
            warnings.warn(f"wandb did not start, going on without it: {error}", stacklevel=3)

    @property
    def active(self) -> bool:
        """Whether rows still reach wandb."""
        return self._run is not None

    def log(self, row: Mapping[str, float | None]) -> None:
        """Send one row of metrics with its "step"; missing values are left out."""
        if self._run is None:
            return
        try:
            self._run.log({name: value for name, value in row.items() if value is not None})
        except Exception as error:
            self._run = None
            warnings.warn(f"wandb stopped taking metrics, going on without it: {error}", stacklevel=3)

    def close(self) -> None:
        """Finish the run, waiting at most FINISH_TIMEOUT_S for uploads."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:
            warnings.warn(f"wandb did not finish cleanly: {error}", stacklevel=3)


def _init(run_dir: Path, config: Mapping[str, Any], mode: WandbMode, project: str, name: str) -> Any:
    import wandb  # here, because a run with wandb disabled should not pay for the import

    chosen: Literal["online", "offline", "disabled"]
    chosen = _auto_mode(wandb) if mode == "auto" else mode
    if chosen == "disabled":
        return None
    run_dir.mkdir(parents=True, exist_ok=True)
    online = chosen == "online"
    run = wandb.init(
        dir=run_dir,
        project=project,
        name=name,
        config=dict(config),
        mode=chosen,
        id=_run_id(run_dir),
        resume="allow" if online else None,  # wandb cannot resume offline and would warn about it
        settings=wandb.Settings(
            silent=not online,  # online it prints the link to the run
            console="off",  # else it redirects stdout, which breaks progress bars
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        ),
    )
    # Our step is the x axis: wandb's own counts calls, so it would drift from ours when a step logs twice or resumes.
    run.define_metric("*", step_metric="step")
    return run


def _auto_mode(wandb: Any) -> Literal["online", "offline", "disabled"]:
    """What WANDB_MODE says if set, else online when credentials are at hand and offline when not. Uses no network."""
    if wish := os.environ.get("WANDB_MODE"):
        known: dict[str, Literal["online", "disabled"]] = {"online": "online", "disabled": "disabled"}
        return known.get(wish, "offline")
    # The call that wandb.init makes itself. The public wandb.login(prompt=False) asks the server, for seconds if it is
    # not reachable, and writes wandb's settings file.
    from wandb.sdk.lib.wbauth import authenticate_session

    host = wandb.setup().settings.base_url
    found = authenticate_session(host=host, source="deltarl", prompt=False, update_session=False)
    return "online" if found else "offline"


def _run_id(run_dir: Path) -> str:
    path = run_dir / "wandb_id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()
