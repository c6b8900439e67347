"""How the processes that compare and run answers are doing, for Prometheus."""

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from search.answers import MathAnswers
from server.sandbox import Sandbox
from training.grading.jail import Ending


class AnswersCollector(Collector):
    """Read when somebody asks."""

    def __init__(self, math: MathAnswers, sandbox: Sandbox) -> None:
        self._math = math
        self._sandbox = sandbox

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield CounterMetricFamily(
            "rung_answers_undecided",
            "Comparisons of final answers that ran out of time or memory; taken for different.",
            value=self._math.undecided,
        )
        yield CounterMetricFamily(
            "rung_answer_processes_replaced",
            "Processes comparing answers that died or were killed, and were replaced.",
            value=self._math.processes_replaced,
        )
        yield GaugeMetricFamily(
            "rung_code_answers_available",
            "1 where programs can be run in the sandbox.",
            value=self._sandbox.state == "available",
        )
        runs = CounterMetricFamily(
            "rung_code_runs",
            "Runs of programs in the sandbox by how they ended: ended (of themselves), time, "
            "output (too much), killed.",
            labels=["ending"],
        )
        for ending in get_args(Ending):
            runs.add_metric([ending], self._sandbox.grader.endings[ending])
        yield runs
