"""What a server is made of, apart from HTTP: versions, engine, policies, scorers.

The routes and the command line call the same two methods, `score` and `search`, with wire types in
and wire types out.
"""

import re
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prm.calibrated import CalibratedScorer
from prm.engine.client import EngineClient
from prm.errors import InvalidInput, ModelFolderError, UnknownModel
from prm.manifest import ModelVersion, PolicyManifest
from prm.registry import Registry
from prm.scorer import ScoredBatch, StepScorer
from prm.tasks import off_loop_if_long
from prm.types import ScoredTrajectory, Trajectory
from search.budget import Budget
from search.generator import Generator
from search.generators.local import LocalGenerator
from search.generators.openai_http import OpenAIServer
from search.run import SearchRun, run_search
from search.types import Candidate, Sampling, SearchEvent, SearchProblem, SearchResult
from server.calibrations import calibration_for, calibration_of_policy
from server.policies import Policies
from server.schemas.score import (
    ItemOut,
    ScoreRequest,
    ScoreResponse,
    ScoreTiming,
    ScoreUsage,
    StepOut,
    TokensOut,
)
from server.schemas.search import (
    CandidateOut,
    EventOut,
    NodeOut,
    SearchRequest,
    SearchResponse,
    SearchTiming,
    UsageOut,
    VoteOut,
)
from server.schemas.search import StepOut as CandidateStepOut
from server.scoring import Scoring
from server.settings import Settings
from server.telemetry import Telemetry


@dataclass(frozen=True, kw_only=True)
class PreparedSearch:
    """A search that was checked and has everything it needs, but has not begun."""

    request: SearchRequest
    run: SearchRun
    generator: Generator
    prm: ModelVersion | None
    started_s: float


class Services:
    """The parts of one server, put together. `start` first, `close` last."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.settings = settings
        self.registry = registry
        self._scoring = Scoring(settings.scoring_urls, settings.scoring_api_key, registry)
        self.engine = EngineClient(self._scoring.engine_folders, settings.engine_options)
        self.telemetry = Telemetry(self.engine)
        self._scorers = self._scoring.scorers(self.engine)
        policies = [v for v in registry.live() if isinstance(v.manifest, PolicyManifest)]
        remote = None
        if settings.policy_url:
            key = settings.policy_api_key
            remote = OpenAIServer(
                settings.policy_url, api_key=key.get_secret_value() if key else None
            )
        self.policies = Policies(
            {v.manifest.name: LocalGenerator(v, self.engine) for v in policies}, remote
        )

    def start(self, on_refusal: Callable[[ModelFolderError], None] | None = None) -> None:
        """Begin to start the engine; returns at once. `on_refusal`: see `create_app`."""
        self.engine.start(on_refusal)

    async def close(self) -> None:
        """End the engine and the connections."""
        await self.engine.close()
        await self.policies.aclose()
        await self._scoring.aclose()

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer one scoring request. Raises CallerError, Unavailable."""
        started = time.perf_counter()
        scorer = self._scorer(request.model, param="model")
        if len(request.items) > self.settings.max_items:
            raise InvalidInput(
                f"items: {len(request.items)} items, and one request takes at most "
                f"{self.settings.max_items}; send several requests",
                param="items",
            )
        calibration = calibration_for(
            request, scorer.version, self.registry.calibrations(scorer.version)
        )
        for wanted in {"cumulative", "tokens"} & set(request.include):
            if not scorer.has_cumulative:
                raise InvalidInput(
                    f"include: {scorer.version.key} has no rewards of single tokens that add up "
                    f"over steps, as an implicit PRM has; leave {wanted} out",
                    param="include",
                )
        if request.reference_compat:
            scorer = scorer.as_published()
        # Cutting is linear, and still half a second for a megabyte: in a thread, as tokenisation.
        size = sum(item.num_characters for item in request.items)
        trajectories = await off_loop_if_long(size, _trajectories, request, scorer.step_separator)
        calibrated = CalibratedScorer(scorer, calibration)
        try:
            batch = await calibrated.score(trajectories, aggregation=request.aggregation)
        except InvalidInput as error:
            raise _named_as_sent(error, request) from error
        self.telemetry.scored(scorer.version, batch, time.perf_counter() - started)
        return _score_response(request, scorer, batch, started)

    async def prepare_search(self, request: SearchRequest) -> PreparedSearch:
        """Check a search and gather its parts. Raises CallerError, Unavailable."""
        started = time.perf_counter()
        scorer = self._scorer(request.prm, param="prm") if request.prm is not None else None
        if scorer is None and request.strategy.needs_prm:
            raise InvalidInput(
                f"strategy {request.strategy.type} needs a prm here; name one, or choose "
                "selection 'majority' or 'first' of best_of_n",
                param="prm",
            )
        generator = await self.policies.get(request.policy)
        budget = Budget(tokens=request.budget.tokens, seconds=request.budget.seconds)
        if budget.tokens is not None and budget.tokens < request.strategy.n:
            raise InvalidInput(
                f"budget.tokens {budget.tokens} does not pay one token for each of "
                f"{request.strategy.n} candidates; raise it or lower strategy.n",
                param="budget.tokens",
            )
        seed = request.sampling.seed
        sampling = Sampling(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.sampling.max_tokens,
            stop=request.sampling.stop,
            seed=secrets.randbits(32) if seed is None else seed,
        )
        policy = self.registry.get(request.policy)
        run = SearchRun(
            SearchProblem(messages=request.to_messages()),
            generator,
            self._calibrated(scorer, request) if scorer else None,
            sampling=sampling,
            budget=budget,
            step_separator=policy.manifest.step_separator if policy else "\n\n",
        )
        return PreparedSearch(
            request=request,
            run=run,
            generator=generator,
            prm=scorer.version if scorer else None,
            started_s=started,
        )

    async def search(self, prepared: PreparedSearch) -> SearchResponse:
        """Run a search to its end."""
        async with aclosing(self.search_events(prepared)) as events:
            async for event in events:
                if isinstance(event, SearchResponse):
                    return event
        raise AssertionError("a search ends with its result")

    async def search_events(
        self, prepared: PreparedSearch
    ) -> AsyncGenerator[EventOut | SearchResponse]:
        """Every event of a search, then the response. Closing the iterator stops the search."""
        async with aclosing(run_search(prepared.request.strategy, prepared.run)) as events:
            async for event in events:
                if isinstance(event, SearchEvent):
                    yield EventOut(**asdict(event))
                else:
                    self.telemetry.searched(
                        prepared.request.strategy.type,
                        prepared.generator,
                        prepared.prm,
                        event,
                        time.perf_counter() - prepared.started_s,
                    )
                    yield _search_response(prepared, event)

    def _calibrated(self, scorer: StepScorer, request: SearchRequest) -> CalibratedScorer:
        known = self.registry.calibrations(scorer.version)
        calibration = calibration_of_policy(request.policy, known)
        aggregation = getattr(request.strategy, "aggregation", None)
        if aggregation == "fitted" and not (calibration and calibration.response):
            raise InvalidInput(
                f"strategy.aggregation: {scorer.version.key} has no aggregation fitted for policy "
                f"{request.policy!r}; choose another, or fit one with `rung eval calibrate`",
                param="strategy.aggregation",
            )
        return CalibratedScorer(scorer, calibration)

    def _scorer(self, key: str, *, param: str) -> StepScorer:
        version = self.registry.get(key)
        if version is None or version.key not in self._scorers:
            known = ", ".join(sorted(s.manifest.name for s in self._scorers.values())) or "none"
            raise UnknownModel(
                f"no PRM named {key!r} is served here; there is {known}", param=param
            )
        return self._scorers[version.key]


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


def _trajectories(request: ScoreRequest, separator: str) -> list[Trajectory]:
    rule = request.segmentation.rule(separator)
    trajectories = []
    for index, item in enumerate(request.items):
        try:
            trajectories.append(item.to_trajectory(rule))
        except InvalidInput as error:
            field = f"items[{index}].{error.param}"
            raise InvalidInput(f"{field}: {error}", param=field) from error
    return trajectories


def _named_as_sent(error: InvalidInput, request: ScoreRequest) -> InvalidInput:
    """The same error, about `problem` where the caller sent that and no messages."""
    field = re.fullmatch(r"items\[(\d+)\]\.messages\[0\]\.content", error.param or "")
    if field is None or request.items[int(field[1])].problem is None:
        return error
    sent = f"items[{field[1]}].problem"
    return InvalidInput(str(error).replace(field[0], sent), param=sent)


def _score_response(
    request: ScoreRequest, scorer: StepScorer, batch: ScoredBatch, started_s: float
) -> ScoreResponse:
    prompt_tokens = sum(item.prompt_tokens for item in batch.items)
    return ScoreResponse(
        id=f"prm-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=scorer.manifest.name,
        model_version=scorer.manifest.version,
        family=scorer.manifest.family,
        recipe=scorer.recipe.label,
        data=[
            _item_out(index, wanted.id, scored, set(request.include))
            for index, (wanted, scored) in enumerate(zip(request.items, batch.items, strict=True))
        ],
        usage=ScoreUsage(
            prompt_tokens=prompt_tokens,
            cached_tokens=sum(item.cached_tokens for item in batch.items),
            scored_tokens=sum(item.scored_tokens for item in batch.items),
            **_written(batch.items),
            total_tokens=prompt_tokens,
        ),
        timing_ms=ScoreTiming(
            queue=batch.queue_ms,
            encode=batch.encode_ms,
            inference=batch.inference_ms,
            total=1e3 * (time.perf_counter() - started_s),
        ),
    )


def _written(items: Sequence[ScoredTrajectory]) -> dict[str, int]:
    """What a generative PRM wrote; nothing for the others, which only read."""
    counts = ("generated_tokens", "cut_samples", "discarded_samples")
    written = {name: sum(getattr(item, name) for item in items) for name in counts}
    return written if any(written.values()) else {}


def _item_out(
    index: int, item_id: str | None, scored: ScoredTrajectory, include: set[str]
) -> ItemOut:
    tokens = scored.tokens if "tokens" in include else None
    calibrated = scored.calibrated if "calibrated" in include else None
    return ItemOut(
        index=index,
        id=item_id,
        steps=[
            StepOut(
                index=step.index,
                text=step.text,
                char_start=step.char_start,
                char_end=step.char_end,
                score=score.score,
                raw=score.raw if "raw" in include else None,
                calibrated=calibrated[step.index] if calibrated else None,
                cumulative=score.cumulative if "cumulative" in include else None,
                cached=step.index < scored.cached_steps,
            )
            for step, score in zip(scored.trajectory.steps, scored.step_scores, strict=True)
        ],
        aggregates=dict(scored.aggregates),
        score=scored.score,
        first_error=scored.first_error,
        tokens=TokensOut(
            ids=list(tokens.ids),
            char_offsets=list(tokens.char_offsets),
            rewards=list(tokens.rewards),
        )
        if tokens
        else None,
    )


def _search_response(prepared: PreparedSearch, result: SearchResult) -> SearchResponse:
    request, run = prepared.request, prepared.run
    winner = result.winner
    return SearchResponse(
        id=f"search-{uuid.uuid4().hex}",
        created=int(time.time()),
        policy=prepared.generator.name,
        policy_version=prepared.generator.version,
        prm=prepared.prm.manifest.name if prepared.prm else None,
        prm_version=prepared.prm.manifest.version if prepared.prm else None,
        strategy=request.strategy.model_dump(),
        sampling=asdict(run.sampling),
        text=winner.text if winner else "",
        answer=winner.answer if winner else None,
        score=winner.score if winner else None,
        candidates=[CandidateOut(**_candidate_fields(c)) for c in result.candidates]
        if "candidates" in request.include
        else None,
        tree=[NodeOut(**_candidate_fields(c), parent=c.parent, round=c.round) for c in run.tree]
        if "tree" in request.include
        else None,
        votes=[VoteOut(**asdict(vote)) for vote in result.votes],
        rounds=result.rounds,
        stopped_by=result.stopped_by,
        usage=UsageOut(**asdict(result.usage)),
        timing_ms=SearchTiming(
            generate=result.generate_ms,
            score=result.score_ms,
            total=1e3 * (time.perf_counter() - prepared.started_s),
        ),
    )


def _candidate_fields(candidate: Candidate) -> dict[str, Any]:
    return {
        "index": candidate.index,
        "text": candidate.text,
        "answer": candidate.answer,
        "steps": [
            CandidateStepOut(text=step.text, score=step.score.score if step.score else None)
            for step in candidate.steps
        ],
        "score": candidate.score,
        "finish_reason": candidate.finish_reason,
        "tokens": candidate.tokens,
    }
