"""A scorer, and what a calibration makes of its scores beside them.

Kept apart from the scorers: whatever computes the scores, and wherever, they are calibrated alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from prm.aggregation import AggregationName
from prm.calibration import Calibration
from prm.errors import InvalidInput
from prm.scorer import ScoredBatch
from prm.types import ScoredTrajectory, Trajectory


class AnyScorer(Protocol):
    """What is calibrated, and what a search asks of a PRM: see `prm.scorer`."""

    @property
    def step_separator(self) -> str: ...
    def check(self, trajectory: Trajectory) -> None: ...
    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch: ...


class CalibratedScorer:
    """Scores as `scorer` does, with `calibrated` and the aggregate "fitted" where they were fitted.

    Both are functions of the step scores alone; nothing is computed that was not before.
    """

    def __init__(self, scorer: AnyScorer, calibration: Calibration | None) -> None:
        self._scorer = scorer
        self._calibration = calibration

    @property
    def has_fitted(self) -> bool:
        """Whether "fitted" is there to be asked for: a response's probability of being right."""
        return self._calibration is not None and self._calibration.response is not None

    @property
    def step_separator(self) -> str:
        """See `StepScorer.step_separator`."""
        return self._scorer.step_separator

    def check(self, trajectory: Trajectory) -> None:
        """See `StepScorer.check`."""
        self._scorer.check(trajectory)

    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        """See `StepScorer.score`. Raises InvalidInput for "fitted" where nothing is."""
        if aggregation == "fitted" and not self.has_fitted:
            raise InvalidInput(
                "aggregation: no aggregation is fitted for this model and policy; choose another, "
                "or fit one with `rung eval calibrate` on responses labelled `correct`",
                param="aggregation",
            )
        plain = None if aggregation == "fitted" else aggregation
        batch = await self._scorer.score(trajectories, aggregation=plain)
        if self._calibration is None:
            return batch
        items = tuple(_calibrate(item, self._calibration, aggregation) for item in batch.items)
        return replace(batch, items=items)


def _calibrate(
    item: ScoredTrajectory, calibration: Calibration, aggregation: AggregationName | None
) -> ScoredTrajectory:
    scores = [step.score for step in item.step_scores]
    aggregates = dict(item.aggregates)
    if calibration.response is not None:
        aggregates["fitted"] = calibration.response.probability(scores)
    steps = calibration.steps
    return replace(
        item,
        aggregates=aggregates,
        score=aggregates["fitted"] if aggregation == "fitted" else item.score,
        calibrated=tuple(map(steps.probability, scores)) if steps else None,
    )
