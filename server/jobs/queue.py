"""Who runs which job: docket's queue on Redis Streams, or in memory, with nothing in it but ids.

The job folders are the truth (`store.py`); the queue only says that there is something to do. What
it loses is found in the folders, every `RECONCILE_S`: a Redis that came back empty, a message that
nobody took, a job that was accepted while Redis was away. docket's arguments travel as pickles, so
that whoever can write to Redis could run code in a worker: keep it private, with a password.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from docket import Docket, Worker
from pydantic import SecretStr
from redis import RedisError

from server.jobs.store import JobStore

logger = logging.getLogger(__name__)

RECONCILE_S = 2.0
# Messages of a worker that is gone are given to another.
_REDELIVERY = timedelta(seconds=10)
_RECONNECT = timedelta(seconds=1)
# Of a Redis that does not answer: the folder says it, too, and nobody is kept waiting.
_ADDED_WITHIN_S = 2.0
_NAME, _TASK = "rung-jobs", "run_job"


class JobQueue:
    """Says which jobs wait. `start` first, `aclose` last; for one event loop.

    `run` brings a job to its end; without it this process only adds.
    """

    def __init__(
        self,
        store: JobStore,
        redis_url: SecretStr | None,
        run: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        # In memory, each its own: two servers of one process share nothing.
        self._url = redis_url.get_secret_value() if redis_url else "memory://"
        self._name = _NAME if redis_url else f"{_NAME}-{id(self)}"
        self._run = run
        self._docket: Docket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once, also where Redis is away."""
        self._task = asyncio.create_task(self._connected(), name="job queue")

    async def aclose(self) -> None:
        """End what `start` began; a job that runs is let go by its supervisor first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def add(self, job_id: str) -> None:
        """Say that a job waits, once. Best effort: the folders say so, too."""
        if self._docket is None:
            return
        # A key is taken for as long as somebody works on it, and for ever where he was killed.
        starts = (await asyncio.to_thread(self._store.state, job_id)).starts
        try:
            async with asyncio.timeout(_ADDED_WITHIN_S):
                await self._docket.add(_TASK, key=f"{job_id}/{starts}")(job_id)
        except (RedisError, OSError) as error:
            logger.warning("%s waits, and Redis cannot be told: %s", job_id, error)

    async def _take(self, job_id: str) -> None:
        assert self._run is not None
        await self._run(job_id)

    async def _connected(self) -> None:
        """For as long as it lasts; again when the connection is lost."""
        while True:
            try:
                async with Docket(name=self._name, url=self._url) as docket:
                    docket.register(self._take, names=[_TASK])
                    self._docket = docket
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._reconcile())
                        if self._run is not None:
                            tasks.create_task(_work(docket))
            except* (RedisError, OSError) as errors:
                logger.warning("Redis is away, jobs wait: %s", errors.exceptions[0])
            except* Exception as errors:
                # Jobs go on to be found, whatever it was.
                logger.error("the queue of jobs broke and is begun anew", exc_info=errors)
            self._docket = None
            await asyncio.sleep(_RECONNECT.total_seconds())

    async def _reconcile(self) -> None:
        while True:
            for job_id in await asyncio.to_thread(self._store.waiting):
                await self.add(job_id)
            await asyncio.sleep(RECONCILE_S)


async def _work(docket: Docket) -> None:
    async with Worker(
        docket,
        concurrency=1,
        redelivery_timeout=_REDELIVERY,
        reconnection_delay=_RECONNECT,
        schedule_automatic_tasks=False,
    ) as worker:
        await worker.run_forever()
