"""The run's configuration: typed, documented key by key, refused before anything starts if it makes no sense.

`run.py` has the sections and what they must have in common; a section is a file (`eval`, `checkpoint` and `logging`
are in `records.py`). Elsewhere are the loss of `learner` (`rl/objectives/config.py`), `alerts` (`rl/alerts.py`) and
`hardware` (`rl/hardware.py`). The string under each field is its documentation. `configs/*.yaml` set these keys,
`key.sub=value` on the command line overrides them.
"""

from deltarl.rl.config.data import DataConfig, SourceConfig
from deltarl.rl.config.learner import LearnerConfig, Sharding
from deltarl.rl.config.model import ModelConfig
from deltarl.rl.config.run import RunConfig
from deltarl.rl.config.sft import SFTConfig

__all__ = ["DataConfig", "LearnerConfig", "ModelConfig", "RunConfig", "SFTConfig", "Sharding", "SourceConfig"]
