"""What a server is made of, apart from HTTP: versions, engine, policies, and the two services.

The routes and the command line call the same methods of `scores` and `searches`, with wire types in
and wire types out.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prm.chat import ChatTokenizer
from prm.engine.client import EngineClient
from prm.errors import ModelFolderError
from prm.manifest import PolicyManifest
from prm.registry import Registry
from search.answers import MathAnswers
from search.generators.local import LocalGenerator
from search.generators.openai_server import OpenAIServer
from server.policies import Policies
from server.sandbox import Sandbox
from server.score_service import ScoreService
from server.scorers import Scorers
from server.scoring import Scoring
from server.search_service import SearchService
from server.settings import Settings
from server.task_answers import AnswerKinds
from server.telemetry import Telemetry
from training.grading.code import CodeGrader


class Services:
    """The parts of one server, put together. `start` first, `close` last."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.settings = settings
        self.registry = registry
        self._scoring = Scoring(settings.scoring_urls, settings.scoring_api_key, registry)
        self.engine = EngineClient(self._scoring.engine_folders, settings.engine_options)
        self.telemetry = Telemetry(self.engine)
        self.policies = Policies(_local_policies(registry, self.engine), _policy_server(settings))
        if self.policies.breaker is not None:
            self.telemetry.watch_policy_server(self.policies.breaker)
        scorers = Scorers(registry, self._scoring.scorers(self.engine))
        self.scores = ScoreService(scorers, self.telemetry, max_items=settings.max_items)
        self.answers = MathAnswers(workers=settings.answer_processes)
        self.sandbox = Sandbox(CodeGrader(processes=settings.code_processes))
        self.telemetry.watch_answers(self.answers, self.sandbox)
        self.searches = SearchService(
            scorers,
            self.policies,
            AnswerKinds(self.answers, self.sandbox),
            self.telemetry,
            max_candidates=settings.max_candidates,
        )

    def start(self, on_refusal: Callable[[ModelFolderError], None] | None = None) -> None:
        """Begin to start the engine; returns at once. `on_refusal`: see `create_app`."""
        self.engine.start(on_refusal)
        self.sandbox.start()

    async def close(self) -> None:
        """End the engine and the connections."""
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


def _local_policies(registry: Registry, engine: EngineClient) -> dict[str, LocalGenerator]:
    """The live policies, by name, as the engine writes with them."""
    policies = [v for v in registry.live() if isinstance(v.manifest, PolicyManifest)]
    return {version.manifest.name: LocalGenerator(version, engine) for version in policies}


def _policy_server(settings: Settings) -> OpenAIServer | None:
    if not settings.policy_url:
        return None
    key, folder = settings.policy_api_key, settings.policy_tokenizer
    return OpenAIServer(
        settings.policy_url,
        api_key=key.get_secret_value() if key else None,
        tokenizer=ChatTokenizer(folder) if folder else None,
        prompts=settings.policy_prompts,
    )
