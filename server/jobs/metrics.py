"""Jobs as metrics, counted in their folders: the same from every server, whoever runs them."""

import time
from collections import Counter
from collections.abc import Iterable
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.jobs.records import JobState
from server.jobs.store import RUN, JobStore
from server.jobs.views import last_step
from server.schemas.fine_tuning import Status


class JobMetrics(Collector):
    """Asked at every scrape; what is over is read once."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._over: dict[str, tuple[JobState, int]] = {}

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        statuses, verdicts, steps, silent_s = Counter[str](), Counter[str](), 0, 0.0
        for job_id in self._store.ids():
            state, step = self._look(job_id)
            statuses[state.status] += 1
            steps += step
            if state.verdict is not None:
                verdicts[state.verdict] += 1
            if state.status == "running" and state.phase == "train":
                silent_s = max(silent_s, self._silent_s(job_id))
        jobs = GaugeMetricFamily("rung_jobs", "Training jobs by status.", labels=["status"])
        for status in get_args(Status):
            jobs.add_metric([status], statuses[status])
        yield jobs
        yield CounterMetricFamily("rung_job_steps", "Steps that jobs have trained.", value=steps)
        yield GaugeMetricFamily(
            "rung_job_silence_seconds",
            "Since the last sign of life of the running job that is silent longest.",
            value=silent_s,
        )
        gate = CounterMetricFamily(
            "rung_gate_verdicts", "Verdicts of the gate on jobs' PRMs.", labels=["verdict"]
        )
        for verdict in ("passed", "rejected"):
            gate.add_metric([verdict], verdicts[verdict])
        yield gate

    def _look(self, job_id: str) -> tuple[JobState, int]:
        if job_id in self._over and self._over[job_id][0].status != "failed":
            return self._over[job_id]
        state = self._store.state(job_id)
        found = state, last_step(self._store, job_id)
        if state.is_finished:
            self._over[job_id] = found
        return found

    def _silent_s(self, job_id: str) -> float:
        try:
            beaten_at = (self._store.folder(job_id) / RUN / "heartbeat").stat().st_mtime
        except FileNotFoundError:
            return 0.0
        return max(0.0, time.time() - beaten_at)
