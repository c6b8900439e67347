"""What the server measures of itself, for Prometheus.

Plain HTTP numbers (requests and latency by route and status) come from the instrumentator; what is
here is what only Rung knows: models, versions, tokens, queues, the engine.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prm.engine.client import EngineClient, EngineState
from prm.manifest import ModelVersion
from prm.scorer import ScoredBatch
from search.answers import MathAnswers
from search.generator import Generator
from search.generators.breaker import Breaker, BreakerState
from search.types import SearchUsage, StoppedBy
from server.answer_metrics import AnswersCollector
from server.sandbox import Sandbox
from server.serving import Serving
from server.version_metrics import VersionsCollector

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Telemetry:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, engine: EngineClient) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        labels = ("model", "version")
        self._tokens = Counter(
            "rung_tokens",
            "Tokens by kind: prompt (sent by callers), scored (read by a PRM's models), generated "
            "and discarded (by searches; generated also by generative PRMs).",
            (*labels, "kind"),
            registry=self.registry,
        )
        self._steps = Counter(
            "rung_scored_steps", "Steps that were scored.", labels, registry=self.registry
        )
        self._samples = Counter(
            "rung_verification_samples",
            "Samples of generative PRMs: cut (broke off, judged so), discarded (no verdict).",
            (*labels, "kind"),
            registry=self.registry,
        )
        self._queue = Histogram(
            "rung_queue_seconds",
            "Wait of a scoring request for its first batch.",
            labels,
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._inference = Histogram(
            "rung_inference_seconds",
            "Time of a scoring request in forwards.",
            labels,
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._requests = Histogram(
            "rung_request_seconds",
            "Time of an answered request: kind score by its PRM, kind search by its policy.",
            ("kind", *labels),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._searches = Counter(
            "rung_searches",
            "Searches by strategy and what stopped them.",
            ("strategy", "stopped_by"),
            registry=self.registry,
        )
        self._swaps = Histogram(
            "rung_swap_seconds",
            "From the sight of a published version to its first request.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "rung_requests_in_flight", "Requests that hold a permit.", registry=self.registry
        )
        self.refused = Counter(
            "rung_requests_refused",
            "Requests turned away because all permits were taken.",
            registry=self.registry,
        )

    def watch_policy_server(self, breaker: Breaker) -> None:
        """Show from now on how the policy server is doing."""
        self.registry.register(_PolicyServerCollector(breaker))

    def watch_answers(self, math: MathAnswers, sandbox: Sandbox) -> None:
        """Show from now on how the processes behind answers are doing."""
        self.registry.register(AnswersCollector(math, sandbox))

    def watch_versions(self, serving: Serving, failures: Callable[[], Mapping[str, str]]) -> None:
        """Show from now on which versions answer, and which should and cannot."""
        self.registry.register(VersionsCollector(serving, failures))

    def swapped(self, seconds: float) -> None:
        """Book one change of versions."""
        self._swaps.observe(seconds)

    def scored(self, version: ModelVersion, batch: ScoredBatch, took_s: float) -> None:
        """Book one scoring request."""
        labels = (version.manifest.name, version.manifest.version)
        self._requests.labels("score", *labels).observe(took_s)
        self._tokens.labels(*labels, "prompt").inc(sum(i.prompt_tokens for i in batch.items))
        self._tokens.labels(*labels, "scored").inc(sum(i.scored_tokens for i in batch.items))
        self._tokens.labels(*labels, "generated").inc(sum(i.generated_tokens for i in batch.items))
        self._samples.labels(*labels, "cut").inc(sum(i.cut_samples for i in batch.items))
        self._samples.labels(*labels, "discarded").inc(
            sum(i.discarded_samples for i in batch.items)
        )
        self._tokens.labels(*labels, "cached").inc(sum(i.cached_tokens for i in batch.items))
        self._steps.labels(*labels).inc(sum(len(i.step_scores) for i in batch.items))
        self._queue.labels(*labels).observe(batch.queue_ms / 1e3)
        self._inference.labels(*labels).observe(batch.inference_ms / 1e3)

    def searched(
        self,
        strategy: str,
        policy: Generator,
        prm: ModelVersion | None,
        usage: SearchUsage,
        stopped_by: StoppedBy | Literal["cancelled", "failed"],
        took_s: float,
    ) -> None:
        """Book one search, finished or not: what it spent is spent."""
        self._requests.labels("search", policy.name, policy.version).observe(took_s)
        self._searches.labels(strategy, stopped_by).inc()
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("generated", usage.generated_tokens),
            ("discarded", usage.discarded_tokens),
        ):
            self._tokens.labels(policy.name, policy.version, kind).inc(count)
        if prm is not None:
            labels = (prm.manifest.name, prm.manifest.version)
            self._tokens.labels(*labels, "scored").inc(usage.scored_tokens)
            self._tokens.labels(*labels, "cached").inc(usage.cached_tokens)


class _PolicyServerCollector(Collector):
    """The policy server's breaker, read when somebody asks."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "rung_policy_server_breaker",
            "1 for what the next request to the policy server meets: closed (it goes through), "
            "open (refused here), half_open (it finds out).",
            labels=["state"],
        )
        for each in BreakerState:
            state.add_metric([each.value], float(self._breaker.state is each))
        yield state
        yield CounterMetricFamily(
            "rung_policy_server_failures",
            "Requests to the policy server that failed or broke off.",
            value=self._breaker.failures,
        )


class _EngineCollector(Collector):
    """The engine's state, read when somebody asks."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        yield GaugeMetricFamily(
            "rung_engine_ready",
            "1 while the engine answers.",
            value=engine.state is EngineState.READY,
        )
        yield GaugeMetricFamily(
            "rung_engine_requests_in_flight",
            "Requests queued or running in the engine.",
            value=engine.in_flight,
        )
        yield CounterMetricFamily(
            "rung_engine_restarts", "Engines that died and were replaced.", value=engine.restarts
        )
