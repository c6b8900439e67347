"""Answering one scoring request: check it, cut it into steps, score, answer."""

import re
import time
from collections.abc import Sequence

from prm.calibrated import CalibratedScorer
from prm.errors import InvalidInput, RungError
from prm.scorer import ScoredBatch, StepScorer
from prm.tasks import off_loop_if_long
from prm.types import Trajectory
from server.calibrations import calibration_for, current_calibrations
from server.feedback.memory import Memory
from server.schemas.score import ScoreRequest, ScoreResponse
from server.score_response import score_response
from server.serving import Lease, Serving
from server.telemetry import Telemetry
from server.trials import Trials


class ScoreService:
    """Scores for the steps of a request's items, at most `max_items` of them."""

    def __init__(
        self,
        serving: Serving,
        trials: Trials,
        telemetry: Telemetry,
        memory: Memory,
        *,
        max_items: int,
    ) -> None:
        self._serving = serving
        self._trials = trials
        self._telemetry = telemetry
        self._memory = memory
        self._max_items = max_items

    async def score(self, request: ScoreRequest, *, caller: str | None = None) -> ScoreResponse:
        """Answer one scoring request. `caller` decides who is a canary's.

        Raises CallerError, Unavailable.
        """
        started = time.perf_counter()
        await self._serving.when_open(request.model)
        scorer = self._serving.scorer(request.model, param="model", caller=caller)
        self._check_number(request)
        shadow = self._serving.shadow(scorer.version, caller)
        held = [scorer.version, *([shadow.version] if shadow else [])]
        with self._serving.lease(*held) as lease:
            return await self._score(request, scorer, shadow, lease, started)

    async def _score(
        self,
        request: ScoreRequest,
        scorer: StepScorer,
        shadow: StepScorer | None,
        lease: Lease,
        started: float,
    ) -> ScoreResponse:
        known = await current_calibrations(lease.registry, scorer.version)
        calibration = calibration_for(request, scorer.version, known)
        _check_include(request, scorer)
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
        except RungError as error:
            self._trials.failed(scorer.version, error)
            raise
        self._trials.scored(scorer.version, batch)
        if shadow is not None and not request.reference_compat and calibration is None:
            self._score_beside(shadow, self._serving.renew(lease), trajectories, request, batch)
        self._telemetry.scored(scorer.version, batch, time.perf_counter() - started)
        response = score_response(request, scorer, batch, started)
        self._memory.scored(response.id, scorer.version, batch)
        return response

    def _score_beside(
        self,
        shadow: StepScorer,
        lease: Lease,
        trajectories: Sequence[Trajectory],
        request: ScoreRequest,
        live: ScoredBatch,
    ) -> None:
        async def score() -> ScoredBatch:
            with lease:
                return await shadow.score(trajectories, aggregation=request.aggregation)

        self._trials.beside(shadow.version, live, score)

    def _check_number(self, request: ScoreRequest) -> None:
        if len(request.items) > self._max_items:
            raise InvalidInput(
                f"items: {len(request.items)} items, and one request takes at most "
                f"{self._max_items}; send several requests",
                param="items",
            )


def _check_include(request: ScoreRequest, scorer: StepScorer) -> None:
    for wanted in {"cumulative", "tokens"} & set(request.include):
        if not scorer.has_cumulative:
            raise InvalidInput(
                f"include: {scorer.version.key} has no rewards of single tokens that add up "
                f"over steps, as an implicit PRM has; leave {wanted} out",
                param="include",
            )


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
