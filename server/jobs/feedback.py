"""The retrainer of a server: its jobs go the way of everybody's."""

from functools import partial

from server.feedback.retrain import Retrainer
from server.jobs.create import create_job
from server.services import Services


def retrainer_of(services: Services) -> Retrainer:
    """Trains on feedback as the settings say; not started yet."""
    settings = services.settings
    return Retrainer(
        services.feedback.store,
        services.jobs,
        services.files,
        services.serving,
        services.feedback_metrics,
        partial(create_job, services),
        every=settings.retrain_every,
        hours=settings.retrain_hours,
        key_share=settings.feedback_key_share,
    )
