"""Running one search: check it and gather its parts, then round by round to the answer."""

import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Literal

from prm.calibrated import CalibratedScorer
from prm.errors import InvalidInput
from prm.manifest import ModelVersion
from prm.scorer import StepScorer
from search.budget import EFFORTS, Budget
from search.generator import Generator
from search.run import SearchRun, run_search
from search.types import Sampling, SearchEvent, SearchProblem, SearchUsage, StoppedBy
from server.calibrations import calibration_of_policy, current_calibrations
from server.choosing import with_chosen
from server.feedback.memory import Memory
from server.policies import Policies
from server.schemas.search import EventOut, SearchRequest, SearchResponse
from server.search_fitted import selection_fitted, with_fitted
from server.search_limits import check_candidates, check_context, check_tokens
from server.search_response import PreparedSearch, search_response
from server.serving import Lease, Serving
from server.task_answers import AnswerKinds
from server.telemetry import Telemetry


class SearchService:
    """`prepare` refuses what can be refused before anything is written; then `run` or `events`."""

    def __init__(
        self,
        serving: Serving,
        policies: Policies,
        answers: AnswerKinds,
        telemetry: Telemetry,
        memory: Memory,
        *,
        max_candidates: int,
    ) -> None:
        self._serving = serving
        self._policies = policies
        self._answers = answers
        self._telemetry = telemetry
        self._memory = memory
        self._max_candidates = max_candidates

    async def prepare(
        self, request: SearchRequest, *, caller: str | None = None, num_given: int = 1
    ) -> PreparedSearch:
        """Check a search and gather its parts. `caller` decides who is a canary's.

        The caller is given the `num_given` best candidates, and may say later what they were worth.

        Raises CallerError, Unavailable.
        """
        started = time.perf_counter()
        await self._serving.when_open(request.prm)
        scorer, lease = self._judge(request, caller)
        request, choice = await with_chosen(
            request, scorer.version if scorer else None, max_candidates=self._max_candidates
        )
        check_candidates(request.strategy, self._max_candidates)
        if scorer is None and request.strategy.needs_prm:
            raise InvalidInput(
                f"strategy {request.strategy.type} needs a prm here; name one, or choose "
                "selection 'majority' or 'first' of best_of_n",
                param="prm",
            )
        generator, policy, lease = await self._writer(request.policy, lease)
        if scorer is not None:
            await check_context(request, scorer, generator)
        answers = await self._answers.of(request.answers)
        budget = _budget(request)
        calibrated = await self._calibrated(scorer, request, lease) if scorer else None
        fitted = await selection_fitted(request, scorer.version) if scorer else None
        request = with_fitted(
            request,
            fitted,
            has_prm=scorer is not None,
            has_response=calibrated is not None and calibrated.has_fitted,
        )
        run = SearchRun(
            SearchProblem(messages=request.to_messages()),
            generator,
            calibrated,
            sampling=_sampling(request),
            budget=budget,
            step_separator=policy.manifest.step_separator if policy else "\n\n",
            answers=answers,
            selector=fitted.selector if fitted else None,
        )
        run.choice = choice
        return PreparedSearch(
            id=f"search-{uuid.uuid4().hex}",
            request=request,
            run=run,
            generator=generator,
            prm=scorer.version if scorer else None,
            lease=lease,
            started_s=started,
            num_given=num_given,
        )

    async def run(self, prepared: PreparedSearch) -> SearchResponse:
        """Run a search to its end."""
        prepared.run.is_watched = False
        async with aclosing(self._told(prepared)) as told:
            async for each in told:
                if isinstance(each, SearchResponse):
                    return each
        raise AssertionError("a search ends with its result")

    async def events(self, prepared: PreparedSearch) -> AsyncGenerator[EventOut | SearchResponse]:
        """Every event of a search, then the response. Closing the iterator stops the search."""
        async with aclosing(self._told(prepared)) as told:
            async for each in told:
                yield EventOut(**asdict(each)) if isinstance(each, SearchEvent) else each

    async def _told(self, prepared: PreparedSearch) -> AsyncGenerator[SearchEvent | SearchResponse]:
        """The same in the words of the search; whatever ends it is counted."""
        run = prepared.run
        usage: SearchUsage | None = None
        ended_by: StoppedBy | Literal["cancelled", "failed"] = "cancelled"
        try:
            async with aclosing(run_search(prepared.request.strategy, run)) as events:
                async for event in events:
                    if isinstance(event, SearchEvent):
                        yield event
                    else:
                        usage, ended_by = event.usage, event.stopped_by
                        self._memory.searched(
                            prepared.id,
                            run.problem.messages,
                            prepared.prm,
                            event,
                            given=prepared.num_given,
                        )
                        yield search_response(prepared, event)
        except Exception:
            ended_by = "failed"
            raise
        finally:
            prepared.lease.release()
            self._telemetry.searched(
                prepared.request.strategy.type,
                prepared.generator,
                prepared.prm,
                usage or run.usage(),
                ended_by,
                time.perf_counter() - prepared.started_s,
            )

    def _judge(self, request: SearchRequest, caller: str | None) -> tuple[StepScorer | None, Lease]:
        """The PRM, and a hold on it to the search's end."""
        if request.prm is None:
            return None, self._serving.lease()
        scorer = self._serving.scorer(request.prm, param="prm", caller=caller)
        return scorer, self._serving.lease(scorer.version)

    async def _writer(
        self, name: str, lease: Lease
    ) -> tuple[Generator, ModelVersion | None, Lease]:
        """The policy, which version it is where it is one of ours, and a hold on that as well."""
        generator = await self._policies.get(name)
        while name in self._serving.closed:
            await self._serving.when_open(name)
            generator = await self._policies.get(name)
        version = self._serving.registry.get(name)
        return generator, version, self._serving.extended(lease, version) if version else lease

    async def _calibrated(
        self, scorer: StepScorer, request: SearchRequest, lease: Lease
    ) -> CalibratedScorer:
        known = await current_calibrations(lease.registry, scorer.version)
        calibration = calibration_of_policy(request.policy, known)
        aggregation = getattr(request.strategy, "aggregation", None)
        if aggregation == "fitted" and not (calibration and calibration.response):
            raise InvalidInput(
                f"strategy.aggregation: {scorer.version.key} has no aggregation fitted for policy "
                f"{request.policy!r}; choose another, or fit one with `rung eval calibrate`",
                param="strategy.aggregation",
            )
        return CalibratedScorer(scorer, calibration)


def _budget(request: SearchRequest) -> Budget:
    budget = Budget(
        tokens=request.budget.tokens, seconds=request.budget.seconds, calls=request.budget.calls
    )
    if request.reasoning_effort is not None and budget.tokens is None:
        budget = replace(budget, tokens=EFFORTS[request.reasoning_effort].tokens)
    check_tokens(request.strategy, budget.tokens)
    return budget


def _sampling(request: SearchRequest) -> Sampling:
    seed = request.sampling.seed
    return Sampling(
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        max_tokens=request.sampling.max_tokens,
        stop=request.sampling.stop,
        seed=secrets.randbits(32) if seed is None else seed,
    )
