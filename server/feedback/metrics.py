"""What is measured of feedback, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from prm.errors import CallerError, Conflict, NotFound, RungError
from server.feedback.store import QuotaSpent
from server.feedback.types import Label

_WORDS = {True: "true", False: "false", None: "unknown"}


class FeedbackMetrics:
    """Labels that were accepted, refused, and wait for a training."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._accepted = Counter(
            "rung_feedback",
            "Labels that were accepted: true, false or unknown.",
            ("correct",),
            registry=registry,
        )
        self._refused = Counter(
            "rung_feedback_refused",
            "Requests with feedback that were refused: unknown_id, conflict, quota, invalid, "
            "unavailable.",
            ("reason",),
            registry=registry,
        )
        self.pending = Gauge(
            "rung_feedback_pending",
            "Labels since the last training on them.",
            ("model",),
            registry=registry,
        )

    def accepted(self, label: Label) -> None:
        """Book a label."""
        self._accepted.labels(_WORDS[label.correct]).inc()

    def refused(self, error: RungError) -> None:
        """Book a request that was not taken."""
        match error:
            case NotFound():
                reason = "unknown_id"
            case Conflict():
                reason = "conflict"
            case QuotaSpent():
                reason = "quota"
            case CallerError():
                reason = "invalid"
            case _:
                reason = "unavailable"
        self._refused.labels(reason).inc()
