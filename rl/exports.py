"""The newest metrics for who watches several runs: on a Prometheus endpoint of the driver, and through Ray's own.

A gauge is named after its metric, deltarl_reward_mean after reward/mean, and labelled with the run. Metrics that a row
does not have, an evaluation's, keep their last value.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import SupportsFloat

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deltarl.actor.gauges import RayGauges
from deltarl.rl.metrics import metric_doc

log = logging.getLogger(__name__)


class Exports:
    """Hands each row on. A run goes on without what cannot be served."""

    def __init__(self, run: str, host: str, port: int | None):
        """
        Args:
            run: the label.
            host, port: where to serve /metrics; without a port it is not served.
        """
        self._newest, self._server = _Newest(run), None
        self._ray = RayGauges(run)
        if port is None:
            return
        registry = CollectorRegistry()
        registry.register(self._newest)
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:
            log.warning("no metrics at %s:%d, going on without (logging.prometheus_port): %s", host, port, error)
        else:
            log.info("metrics for Prometheus: http://%s:%d/metrics", host, port)

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Takes the row of a step, of metrics that METRICS knows."""
        row = {gauge_name(name): (metric_doc(name).description, float(value)) for name, value in values.items()}
        row[gauge_name("step")] = "Newest step", float(step)
        # A new dict: the server's thread may be going through the old one.
        self._newest.row = self._newest.row | row
        self._ray.set(row)

    def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def gauge_name(metric: str) -> str:
    """What Prometheus calls a metric: only letters, digits and underscores."""
    return "deltarl_" + re.sub(r"[^A-Za-z0-9_]+", "_", metric)


class _Newest(Collector):
    def __init__(self, run: str):
        self._run, self.row = run, dict[str, tuple[str, float]]()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, (description, value) in self.row.items():
            gauge = GaugeMetricFamily(name, description, labels=["run"])
            gauge.add_metric([self._run], value)
            yield gauge
