"""Trains PRMs on their feedback, unasked: every N labels, or every H hours.

    labels wait → written down as taken → scored by the live PRM → snapshot → files → job

The gate at the job's end decides whether its PRM goes live. One PRM has one such job at a time, and
none while another job makes a version of it. Labels count once: also a job that fails has had them,
and the next one comes with the next N (it is trained on them all, as long as they are new enough).
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from prm.errors import CallerError, NotFound, Overloaded, Unavailable
from prm.files import replace_durably
from server.feedback.judging import judge_unscored
from server.feedback.metrics import FeedbackMetrics
from server.feedback.snapshot import Snapshot, take_snapshot
from server.feedback.store import FeedbackStore
from server.feedback.trainings import Training, Trainings, Waiting
from server.files.store import FileStore
from server.jobs.records import JobRecord
from server.jobs.store import JobStore
from server.schemas.fine_tuning import JobRequest
from server.serving import Serving

POLL_S = 2.0
# After what may pass: a full disk, too many jobs.
RETRY_S = 30.0
# Making a job takes seconds; who has not made it by then does not.
STALE_S = 600
# In the metadata of its job: which labels it was made of.
MARK = "feedback"
REPORT = "feedback.json"

CreateJob = Callable[[JobRequest], Awaitable[JobRecord]]
logger = logging.getLogger(__name__)


class Retrainer:
    """Watches the labels of every PRM. `start` first, `aclose` last.

    With neither `every` nor `hours` it only counts them.
    """

    def __init__(
        self,
        store: FeedbackStore,
        jobs: JobStore,
        files: FileStore,
        serving: Serving,
        metrics: FeedbackMetrics,
        create: CreateJob,
        *,
        every: int | None,
        hours: float | None,
        key_share: float,
    ) -> None:
        self._store = store
        self.trainings = Trainings(store.database)
        self._jobs = jobs
        self._files = files
        self._serving = serving
        self._metrics = metrics
        self._create = create
        self._every = every
        self._hours = hours
        self._key_share = key_share
        self._owner = uuid.uuid4().hex
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch; returns at once."""
        self._task = asyncio.create_task(self._watch(), name="retrainer")

    async def aclose(self) -> None:
        """Stop watching. A job that is about to be made is made by the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            pause_s = POLL_S
            try:
                await self.look()
            except (Overloaded, Unavailable, OSError) as error:
                logger.warning("no training on feedback now: %s", error)
                pause_s = RETRY_S
            except Exception:
                # Whatever it was, it must not end the watching.
                logger.exception("feedback could not be looked at")
                pause_s = RETRY_S
            await asyncio.sleep(pause_s)

    async def look(self) -> None:
        """Look once, and begin what is due. Raises Overloaded, Unavailable, OSError."""
        for waiting in await self.trainings.waiting():
            self._metrics.pending.labels(waiting.model).set(waiting.labels)
            last = waiting.last
            if last is not None and last.outcome is None:
                await self._follow(last)
            elif self._is_due(waiting) and not await self._is_busy(waiting.model):
                training = await self.trainings.begin(waiting, self._owner)
                if training is not None:
                    await self._train(training)

    def _is_due(self, waiting: Waiting) -> bool:
        if not waiting.labels or waiting.model not in self._serving.registry.pointers:
            return False
        if self._every is not None and waiting.labels >= self._every:
            return True
        since = max(waiting.since, waiting.last.begun if waiting.last else 0)
        return self._hours is not None and time.time() - since >= 3600 * self._hours

    async def _is_busy(self, model: str) -> bool:
        """Whether a job that makes a version of this PRM is not finished."""
        return await asyncio.to_thread(self._has_open_job, model)

    def _has_open_job(self, model: str) -> bool:
        return any(
            any(each.name == model for each in self._jobs.record(job_id).publishes)
            and not self._jobs.state(job_id).is_finished
            for job_id in self._jobs.ids()
        )

    async def _follow(self, training: Training) -> None:
        """See how a training that was begun has ended, or finish its beginning."""
        if training.job_id is not None:
            try:
                state = await asyncio.to_thread(self._jobs.state, training.job_id)
            except NotFound:
                await self.trainings.ended(training, "its job is gone")
                return
            if state.is_finished:
                await self.trainings.ended(training, state.status)
            return
        if training.owner != self._owner:
            if time.time() - training.begun < STALE_S:
                return
            taken = await self.trainings.take_over(training, self._owner)
            if taken is None:
                return
            training = taken
        made = await asyncio.to_thread(self._find_job, training)
        if made is None:
            await self._train(training)
        else:
            await self.trainings.created(training, made)

    def _find_job(self, training: Training) -> str | None:
        """The job that was made of these labels before its maker died."""
        for job_id in self._jobs.ids():
            metadata = self._jobs.record(job_id).request.metadata or {}
            if metadata.get(MARK) == _mark(training):
                return job_id
        return None

    async def _train(self, training: Training) -> None:
        """Make the job. What the labels or the PRM do not allow ends the training."""
        try:
            job_id = await self._job_of(training)
        except CallerError as error:
            logger.error("%s is not trained on its feedback: %s", training.model, error)
            await self.trainings.ended(training, str(error))
            return
        if job_id is not None:
            await self.trainings.created(training, job_id)
            logger.info(
                "%s is trained on its feedback, %d labels of it new: %s",
                training.model,
                training.labels,
                job_id,
            )

    async def _job_of(self, training: Training) -> str | None:
        """The id of its job; None where there is nothing to learn."""
        scorer = self._serving.scorer(training.model, param="model")
        with self._serving.lease(scorer.version):
            await judge_unscored(self._store, scorer, training.model, upto=training.upto)
        with TemporaryDirectory(prefix="rung-feedback-") as folder:
            parts = Path(folder) / "training.jsonl", Path(folder) / "held_out.jsonl"
            snapshot = await take_snapshot(
                self._store,
                training.model,
                *parts,
                separator=scorer.step_separator,
                key_share=self._key_share,
                upto=training.upto,
            )
            if (reason := _why_not(snapshot)) is not None:
                logger.warning("%s is not trained on its feedback: %s", training.model, reason)
                await self.trainings.ended(training, reason)
                return None
            ids = [
                (await asyncio.to_thread(self._files.adopt, part, f"feedback-{part.name}")).id
                for part in parts
            ]
        record = await self._create(_request(training, *ids))
        report = partial(replace_durably, self._jobs.folder(record.id) / REPORT)
        await asyncio.to_thread(report, snapshot.report.model_dump_json(indent=1) + "\n")
        return record.id


def _request(training: Training, training_file: str, held_out: str) -> JobRequest:
    return JobRequest.model_validate(
        {
            "model": training.model,
            "training_file": training_file,
            "validation_file": held_out,
            "method": {"type": "prime_feedback"},
            "suffix": "feedback",
            "metadata": {MARK: _mark(training), "labels": str(training.labels)},
        }
    )


def _mark(training: Training) -> str:
    return f"{training.model}:{training.upto}"


def _why_not(snapshot: Snapshot) -> str | None:
    """Why nothing can be learned from labels, or nothing can be said of what was learned."""
    for name, part in (("to train on", snapshot.training), ("held out", snapshot.held_out)):
        if not part.has_both:
            return (
                f"of the responses {name} {part.right} are right and {part.wrong} are wrong; there "
                "must be some of both"
            )
    return None
