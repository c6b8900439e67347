"""Which versions answer, as metrics: read when they are asked for."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.serving import Serving


class VersionsCollector(Collector):
    """The versions behind every name, those that cannot be served, and what requests hold."""

    def __init__(self, serving: Serving, failures: Callable[[], Mapping[str, str]]) -> None:
        self._serving = serving
        self._failures = failures

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        served = GaugeMetricFamily(
            "rung_served_version",
            "The share of callers that a version answers: 1 of a live one without a canary.",
            labels=("model", "version", "state"),
        )
        for name, pointer in self._serving.registry.pointers.items():
            canary = pointer.canary
            share = canary.fraction if canary else 0.0
            served.add_metric((name, pointer.live, "live"), 1 - share)
            if canary:
                served.add_metric((name, canary.version, "canary"), share)
        yield served
        yield GaugeMetricFamily(
            "rung_versions_failed",
            "Versions that should answer and could not be loaded; the log says why.",
            value=len(self._failures()),
        )
        held = GaugeMetricFamily(
            "rung_version_leases", "Requests under way on a version.", labels=("model", "version")
        )
        for key, count in self._serving.leases.items():
            held.add_metric(key.split("@"), count)
        yield held
