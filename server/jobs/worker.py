"""Takes jobs from the queue and brings them to their end, one at a time: `rung worker`.

`rung serve` has one of its own where there is no Redis.
"""

import asyncio
import logging
import signal

from server.jobs.queue import JobQueue
from server.jobs.store import JobStore
from server.jobs.supervisor import Limits, Supervisor
from server.settings import Settings

logger = logging.getLogger(__name__)


class JobWorker:
    """A queue and a supervisor. `start` first, `aclose` last; for one event loop."""

    def __init__(self, settings: Settings, store: JobStore) -> None:
        self._supervisor = Supervisor(store, _limits(settings), _environment(settings, store))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._one = asyncio.Lock()
        self.queue = JobQueue(store, settings.redis_url, self._run)

    def start(self) -> None:
        """Begin to take jobs; returns at once."""
        self.queue.start()

    async def aclose(self) -> None:
        """Take no more, and let go of the one that runs, with a checkpoint."""
        self._supervisor.stop()
        await self.queue.aclose()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _run(self, job_id: str) -> None:
        """To its end, also when the queue's connection breaks and it forgets who waits here."""
        if job_id not in self._running:
            task = asyncio.create_task(self._alone(job_id), name=job_id)
            self._running[job_id] = task
            task.add_done_callback(lambda _: self._running.pop(job_id, None))
        await asyncio.shield(self._running[job_id])

    async def _alone(self, job_id: str) -> None:
        async with self._one:
            try:
                await self._supervisor.run(job_id)
            except Exception:
                logger.exception("%s: nothing could be done with it now", job_id)


async def work(settings: Settings) -> None:
    """Take jobs until this process is told to stop."""
    worker = JobWorker(settings, JobStore(settings.runs))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    worker.start()
    logger.info("waiting for jobs in %s", settings.runs.absolute())
    await stopped.wait()
    logger.info("stopping; a job that runs is let go with a checkpoint")
    await worker.aclose()


def _environment(settings: Settings, store: JobStore) -> dict[str, str]:
    """What children are started with: where everything is, as this process has it."""
    found = {
        "RUNG_RUNS": str(store.runs),
        "RUNG_MODELS": str(settings.models.absolute()),
        "RUNG_DEVICE": settings.device,
    }
    if settings.threads is not None:
        found["RUNG_THREADS"] = str(settings.threads)
    if settings.redis_url is not None:
        found["RUNG_REDIS_URL"] = settings.redis_url.get_secret_value()
    return found


def _limits(settings: Settings) -> Limits:
    return Limits(
        memory_mb=settings.job_memory_mb,
        silence_s=settings.job_silence_s,
        pause_s=settings.job_pause_s,
        attempts=settings.job_attempts,
    )
