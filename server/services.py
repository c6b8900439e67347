"""What a server is made of, apart from HTTP: versions, engine, policies, and the two services.

The routes and the command line call the same methods of `scores` and `searches`, with wire types in
and wire types out.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

from prm.chat import ChatTokenizer
from prm.engine.client import EngineClient
from prm.errors import ModelFolderError
from prm.manifest import ModelVersion, PolicyManifest
from prm.registry import Registry, Verdict, reject
from search.answers import MathAnswers
from search.generators.openai_server import OpenAIServer
from server.announcements import Announcements
from server.feedback.memory import Memory
from server.feedback.metrics import FeedbackMetrics
from server.feedback.service import FeedbackService
from server.feedback.store import FeedbackStore
from server.files.store import FileStore
from server.jobs.metrics import JobMetrics
from server.jobs.store import JobStore
from server.policies import Policies
from server.reload import Reloader
from server.residency import Residency
from server.retention import prune_after_promotion
from server.sandbox import Sandbox
from server.score_service import ScoreService
from server.scoring import Scoring
from server.search_service import SearchService
from server.serving import Serving
from server.settings import Settings
from server.task_answers import AnswerKinds
from server.telemetry import Telemetry
from server.trials import Limits, Trials
from training.grading.code import CodeGrader

logger = logging.getLogger(__name__)


class Services:
    """The parts of one server, put together. `start` first, `close` last."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.settings = settings
        self._scoring = Scoring(settings.scoring_urls, settings.scoring_api_key, registry)
        folders = self._scoring.engine_folders(registry)
        self.engine = EngineClient(folders, settings.engine_options)
        self.serving = Serving(
            self._scoring.snapshot(registry, self.engine), wait_s=settings.swap_wait_s
        )
        self.telemetry = Telemetry(self.engine)
        self.announcements = Announcements(settings.redis_url, lambda name: self.reloader.wake())
        self.reloader = Reloader(
            self.serving,
            self._scoring,
            self.engine,
            Residency(
                self.serving,
                self._scoring,
                self.engine,
                mode=settings.swap,
                # Who waits has to be answered after it, and the version loaded before that.
                drain_s=settings.swap_wait_s / 2,
            ),
            poll_s=settings.reload_poll_s,
            on_swap=self.telemetry.swapped,
            on_change=self.announcements.tell,
            on_promotion=_retention(settings),
        )
        self.trials = Trials(
            _canary_limits(settings),
            lambda name: self.serving.registry.pointers.get(name),
            self._reject,
        )
        self.telemetry.watch_versions(self.serving, lambda: self.reloader.failures)
        policies = [v for v in registry.live() if isinstance(v.manifest, PolicyManifest)]
        self.policies = Policies(lambda: self.serving.policies, _policy_server(settings, policies))
        if self.policies.breaker is not None:
            self.telemetry.watch_policy_server(self.policies.breaker)
        self.memory = Memory(
            settings.runs, hours=settings.feedback_hours, megabytes=settings.feedback_mb
        )
        self.scores = ScoreService(
            self.serving, self.trials, self.telemetry, self.memory, max_items=settings.max_items
        )
        self.answers = MathAnswers(workers=settings.answer_processes)
        self.feedback_metrics = FeedbackMetrics(self.telemetry.registry)
        self.feedback = FeedbackService(
            FeedbackStore(settings.runs),
            self.memory,
            self.serving,
            self.answers,
            self.feedback_metrics,
            per_day=settings.feedback_per_key_day,
            key_share=settings.feedback_key_share,
            max_items=settings.max_items,
        )
        self.sandbox = Sandbox(CodeGrader(processes=settings.code_processes))
        self.telemetry.watch_answers(self.answers, self.sandbox)
        self.searches = SearchService(
            self.serving,
            self.policies,
            AnswerKinds(self.answers, self.sandbox),
            self.telemetry,
            self.memory,
            max_candidates=settings.max_candidates,
        )
        self.files = FileStore(settings.runs / "files")
        self.jobs = JobStore(settings.runs)
        self.telemetry.registry.register(JobMetrics(self.jobs))
        self.announce: Callable[[str], Awaitable[None]] = _nobody_listens
        self._stop_jobs: Callable[[], Awaitable[None]] | None = None

    @property
    def registry(self) -> Registry:
        """The versions that answer now."""
        return self.serving.registry

    def start(self, on_refusal: Callable[[ModelFolderError], None] | None = None) -> None:
        """Begin to start the engine; returns at once. `on_refusal`: see `create_app`."""
        self.engine.start(on_refusal)
        self.sandbox.start()

    def start_jobs(self) -> None:
        """Begin to run training jobs, or to tell workers of them."""
        from server.jobs.queue import JobQueue
        from server.jobs.worker import JobWorker

        if self.settings.runs_jobs:
            worker = JobWorker(self.settings, self.jobs)
            worker.start()
            self.announce, self._stop_jobs = worker.queue.add, worker.aclose
        elif self.settings.redis_url is None:
            logger.warning(
                "RUNG_WORKER is false and no Redis is set: jobs wait, and nobody runs them"
            )
        else:
            queue = JobQueue(self.jobs, self.settings.redis_url)
            queue.start()
            self.announce, self._stop_jobs = queue.add, queue.aclose

    async def _reject(self, name: str, verdict: Verdict) -> None:
        await self.reloader.change(name, None, partial(reject, name=name, verdict=verdict))

    async def close(self) -> None:
        """End the engine and the connections."""
        if self._stop_jobs is not None:
            await self._stop_jobs()
        await self.trials.aclose()
        await self.memory.aclose()
        await self.feedback.store.aclose()
        await self.announcements.close()
        await self.reloader.close()
        await self.engine.close()
        await self.policies.aclose()
        await self._scoring.aclose()
        await self.answers.aclose()
        await self.sandbox.aclose()


@asynccontextmanager
async def running_services(settings: Settings, registry: Registry) -> AsyncIterator[Services]:
    """Services with a ready engine, for use without HTTP. Raises ModelFolderError."""
    services = Services(settings, registry)
    services.start()
    try:
        await services.engine.wait_settled()
        yield services
    finally:
        await services.close()


async def _nobody_listens(_: str) -> None:
    """Who runs jobs looks for them anyway."""


def _canary_limits(settings: Settings) -> Limits:
    return Limits(
        error_rate=settings.canary_error_rate,
        drift=settings.canary_drift,
        least_requests=settings.canary_requests,
    )


def _retention(settings: Settings) -> Callable[[str, Collection[str]], None] | None:
    """Removes old versions of a name, where only so many are kept."""
    if settings.keep_versions is None:
        return None
    keep, root, runs = settings.keep_versions, settings.models, settings.runs

    def prune(name: str, held: Collection[str]) -> None:
        prune_after_promotion(root, runs, name, keep=keep, held=held)

    return prune


def _policy_server(settings: Settings, policies: Sequence[ModelVersion]) -> OpenAIServer | None:
    """The server at `policy_url`; what it serves may have the tokenizer of a policy here."""
    if not settings.policy_url:
        return None
    key, folder = settings.policy_api_key, settings.policy_tokenizer
    return OpenAIServer(
        settings.policy_url,
        api_key=key.get_secret_value() if key else None,
        tokenizer=ChatTokenizer(folder) if folder else None,
        tokenizers={policy.manifest.name: policy.folder for policy in policies},
        prompts=settings.policy_prompts,
    )
