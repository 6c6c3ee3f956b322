"""What Prometheus is told."""

from collections.abc import Iterable
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deltarl.rollout.serving.loop import EngineLoop

# The numbers of `EngineStats` that count from the engine's beginning; the others say how it stands.
_COUNTS = ("prefix_cache_hits", "prompt_tokens", "generated_tokens", "preemptions")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server; its own registry, so that several can live in a process."""

    def __init__(self, loop: EngineLoop):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(loop))
        self.requests = Counter(
            "deltarl_http_requests",
            "Requests by path and status; 499: the client went away.",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "deltarl_http_request_seconds",
            "From a request to the end of its answer.",
            ("path",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.first_token_seconds = Histogram(
            "deltarl_first_token_seconds",
            "From a request to the first piece of text of its stream.",
            registry=self._registry,
            buckets=_SECONDS,
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's own statistics when asked."""

    def __init__(self, loop: EngineLoop):
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("deltarl_up", "Whether the engine works.", float(self._loop.error is None))
        yield GaugeMetricFamily("deltarl_open_requests", "Requests at work or waiting.", self._loop.open_requests)
        yield GaugeMetricFamily("deltarl_max_open_requests", "Most that are accepted.", self._loop.max_queue)
        for name, value in asdict(self._loop.stats).items():
            family = CounterMetricFamily if name in _COUNTS else GaugeMetricFamily
            yield family(f"deltarl_engine_{name}", f"EngineStats.{name}", value)
