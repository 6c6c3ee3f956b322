"""Numbers of the run among the metrics that Ray exports on every node, where its dashboard and Prometheus find them."""

from collections.abc import Mapping

import ray
from ray.util.metrics import Gauge


class RayGauges:
    """Gauges with the label `run`; nothing at all in a process that is not part of a Ray."""

    def __init__(self, run: str):
        self._tags = {"run": run}
        self._gauges: dict[str, Gauge] = {}

    def set(self, row: Mapping[str, tuple[str, float]]) -> None:
        """Takes descriptions and values by name. Ray puts `ray_` before the names."""
        if not ray.is_initialized():
            return
        for name, (description, value) in row.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description, tag_keys=tuple(self._tags))
            self._gauges[name].set(value, self._tags)
