"""Scoring with a generative PRM: verifications are written, verdicts read, samples averaged.

    GenerativeScorer.score → write verifications → read verdicts → mean → aggregates

Every sample has a seed of its own, made of the text before it: the same request gives the same
scores, whatever else is scored beside it (up to the last bits of the logits). Verdicts are read
from texts, tokenised as the authors' scripts do between their calls, and not from sampled ids.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict

from prm.aggregation import AggregationName
from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families.base import EncodedTrajectory, FamilyScores, step_score
from prm.families.generative import load_generative
from prm.families.verdicts import GenerativeRecipe
from prm.manifest import ModelVersion
from prm.scorer import ScoredBatch, StepScorer, encode_all, of_item
from prm.tasks import all_or_none
from prm.types import ScoredTrajectory, Trajectory
from prm.verification import VerdictModel, Verification


class GenerativeScorer(StepScorer):
    """Scores with one generative PRM version; see `StepScorer`."""

    def __init__(self, version: ModelVersion, model: VerdictModel) -> None:
        super().__init__(version)
        self._family = load_generative(version, ChatTokenizer(version.folder))
        self._model = model

    @property
    def recipe(self) -> GenerativeRecipe:
        """See `StepScorer.recipe`."""
        return self._family.recipe

    def check(self, trajectory: Trajectory) -> None:
        """See `StepScorer.check`. What passes has room for a verdict on every step."""
        self._encode(trajectory)

    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        """See `StepScorer.score`. Raises InvalidInput naming a step that got no usable verdict.

        Writing and reading take turns, so their times are not told apart: all of it is inference.
        """
        self._check_aggregation(aggregation)
        started = time.perf_counter()
        silent = await asyncio.to_thread(encode_all, self._family, trajectories)
        encoded = time.perf_counter()
        items = await all_or_none(
            [
                self._item(index, trajectory, item, aggregation)
                for index, (trajectory, item) in enumerate(zip(trajectories, silent, strict=True))
            ]
        )
        return ScoredBatch(
            items=tuple(items),
            encode_ms=1e3 * (encoded - started),
            queue_ms=0.0,
            inference_ms=1e3 * (time.perf_counter() - encoded),
        )

    def _encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        return self._family.encode(trajectory)

    async def _item(
        self,
        index: int,
        trajectory: Trajectory,
        silent: EncodedTrajectory,
        aggregation: AggregationName | None,
    ) -> ScoredTrajectory:
        lengths = [len(read.ids) for read in silent.reads]
        run = Verification(self._family, self._model, trajectory, lengths)
        try:
            raws = await run.raws()
        except InvalidInput as error:
            raise of_item(error, index) from error
        return self._scored(
            trajectory,
            FamilyScores(steps=tuple(map(step_score, raws))),
            aggregation,
            prompt_tokens=len(silent.ids),
            cached_steps=0,
            **asdict(run.cost),
        )
