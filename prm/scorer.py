"""Scoring, end to end: trajectories in, scored trajectories out.

    Scorer.score → family.encode → backend.read → family.score → aggregates

The one path that the HTTP route, the searches and the command line share.
"""

import sys
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any, Protocol

from prm.aggregation import AggregationName, aggregate_all, predicted_error
from prm.chat import ChatTokenizer
from prm.errors import InvalidInput, ModelFault
from prm.families import FAMILIES
from prm.families.base import (
    EncodedTrajectory,
    Family,
    FamilyScores,
    Read,
    ReadOutput,
    Recipe,
)
from prm.manifest import ModelVersion, PrmManifest
from prm.tasks import off_loop_if_long
from prm.types import Message, ScoredTrajectory, Step, Trajectory


class BackendReply(Protocol):
    """What a backend returns: one output per read, and its own timings."""

    @property
    def outputs(self) -> Sequence[ReadOutput]: ...
    @property
    def queue_ms(self) -> float: ...
    @property
    def inference_ms(self) -> float: ...


class Backend(Protocol):
    """Runs models: an engine process, or vLLM servers."""

    async def read(self, reads: Sequence[Read]) -> BackendReply:
        """One output per read. Raises Unavailable when nobody can answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Scored trajectories in the order they came, and where the milliseconds went."""

    items: tuple[ScoredTrajectory, ...]
    encode_ms: float
    queue_ms: float
    inference_ms: float


class StepScorer(ABC):
    """Scores with one PRM version. A score depends on its trajectory alone, never on the batch."""

    def __init__(self, version: ModelVersion) -> None:
        assert isinstance(version.manifest, PrmManifest)
        self.version = version
        self.manifest = version.manifest

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """How this version is read."""

    @abstractmethod
    def check(self, trajectory: Trajectory) -> None:
        """Raises InvalidInput when the model cannot read this trajectory: it is too long."""

    @abstractmethod
    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        """Score every step of every trajectory.

        `aggregation` names the aggregate that becomes the trajectory's score; None is the
        version's own; "fitted" takes a calibration (`prm/calibrated.py`). Raises InvalidInput
        naming `items[i]` for one that the model cannot read.
        """

    @property
    def step_separator(self) -> str:
        """What stands between two steps in this version's training data."""
        return self.manifest.step_separator

    @property
    def context_limit(self) -> int:
        """The most tokens of an item: what the model can read and was trained to read."""
        return min(self.version.context_limit, self.recipe.context_limit or sys.maxsize)

    def prompt_tokens(self, messages: tuple[Message, ...]) -> int:
        """Tokens of an item of this chat, apart from its response.

        Raises InvalidInput when they leave no room for any response.
        """
        step = Step(index=0, text="1", char_start=0, char_end=1)
        shortest = Trajectory(messages=messages, response=step.text, steps=(step,))
        return len(self._encode(shortest).ids) - 1

    @property
    def has_cumulative(self) -> bool:
        """Whether its step scores come with their running sum."""
        return FAMILIES[self.manifest.family].has_cumulative

    def as_published(self) -> "StepScorer":
        """The same version, read at the step boundaries that published numbers were computed with.

        Raises InvalidInput for a family that is read at those boundaries anyway.
        """
        raise InvalidInput(
            f"reference_compat: {self.version.key} is of family {self.manifest.family}, which is "
            "always read as its authors do; leave it out",
            param="reference_compat",
        )

    @abstractmethod
    def _encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        """Its tokens. Raises InvalidInput when the model cannot read it."""

    def _check_aggregation(self, aggregation: AggregationName | None) -> None:
        if aggregation == "fitted":
            raise InvalidInput(
                f"aggregation: nothing is fitted for {self.version.key} and this policy; choose "
                "another, or fit one with `rung eval calibrate` on responses labelled `correct`",
                param="aggregation",
            )

    def _scored(
        self,
        trajectory: Trajectory,
        found: FamilyScores,
        aggregation: AggregationName | None,
        **cost: Any,
    ) -> ScoredTrajectory:
        """A trajectory, its step scores, what follows from them, and what it cost."""
        assert len(found.steps) == len(trajectory.steps), "one score per step"
        scores = [step.score for step in found.steps]
        aggregates = aggregate_all(scores)
        return ScoredTrajectory(
            trajectory=trajectory,
            step_scores=found.steps,
            aggregates=aggregates,
            score=aggregates[aggregation or self.manifest.aggregation],
            first_error=predicted_error(scores, self.manifest.threshold),
            tokens=found.tokens,
            **cost,
        )


class Scorer(StepScorer):
    """Scores with a version of a family that reads: see `prm/families/base.py`."""

    def __init__(self, version: ModelVersion, backend: Backend) -> None:
        super().__init__(version)
        self._backend = backend
        self._spec = FAMILIES[self.manifest.family]
        assert not self._spec.writes, "see prm/generative_scorer.py"
        self._tokenizer = ChatTokenizer(version.folder)
        self._family: Family = self._spec.load(version, self._tokenizer)

    @property
    def recipe(self) -> Recipe:
        """See `StepScorer.recipe`."""
        return self._family.recipe

    def as_published(self) -> "StepScorer":
        """See `StepScorer.as_published`."""
        if self._spec.as_published is None:
            return super().as_published()
        recipe = self._spec.as_published(self.recipe)
        scorer = copy(self)
        scorer._family = self._spec.bind(self.version, recipe, self._tokenizer)
        return scorer

    def check(self, trajectory: Trajectory) -> None:
        """See `StepScorer.check`."""
        self._encode(trajectory)

    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        """See `StepScorer.score`: in as few forwards as the backend can."""
        self._check_aggregation(aggregation)
        started = time.perf_counter()
        # Tokenisation is pure CPU work; in a thread it does not hold up other requests.
        size = sum(trajectory.num_characters for trajectory in trajectories)
        encoded = await off_loop_if_long(size, encode_all, self._family, trajectories)
        encode_ms = 1e3 * (time.perf_counter() - started)
        reply = await self._read(encoded)
        outputs = iter(reply.outputs)
        items = tuple(
            self._finish(trajectory, item, list(islice(outputs, len(item.reads))), aggregation)
            for trajectory, item in zip(trajectories, encoded, strict=True)
        )
        return ScoredBatch(
            items=items,
            encode_ms=encode_ms,
            queue_ms=reply.queue_ms,
            inference_ms=reply.inference_ms,
        )

    def _encode(self, trajectory: Trajectory) -> EncodedTrajectory:
        return self._family.encode(trajectory)

    async def _read(self, encoded: Sequence[EncodedTrajectory]) -> BackendReply:
        """All reads of all items. Raises ModelFault naming the item, Unavailable."""
        reads = [read for item in encoded for read in item.reads]
        try:
            return await self._backend.read(reads)
        except ModelFault as error:
            if error.read is None:
                raise
            ends = list(accumulate(len(item.reads) for item in encoded))
            item, model = bisect_right(ends, error.read), reads[error.read].model
            raise ModelFault(f"items[{item}]: {model}: {error}", read=error.read) from error

    def _finish(
        self,
        trajectory: Trajectory,
        encoded: EncodedTrajectory,
        outputs: Sequence[ReadOutput],
        aggregation: AggregationName | None,
    ) -> ScoredTrajectory:
        return self._scored(
            replace(trajectory, steps=encoded.steps or trajectory.steps),
            self._family.score(encoded, outputs),
            aggregation,
            prompt_tokens=len(encoded.ids),
            scored_tokens=sum(
                len(read.ids) - output.cached_tokens
                for read, output in zip(encoded.reads, outputs, strict=True)
            ),
            cached_tokens=sum(output.cached_tokens for output in outputs),
            cached_steps=bisect_right(
                encoded.step_values, min(output.cached_values for output in outputs)
            ),
        )


def encode_all(family: Family, trajectories: Sequence[Trajectory]) -> list[EncodedTrajectory]:
    """Every trajectory, encoded. Raises InvalidInput naming `items[i]` for one that cannot be."""
    encoded = []
    for index, trajectory in enumerate(trajectories):
        try:
            encoded.append(family.encode(trajectory))
        except InvalidInput as error:
            raise of_item(error, index) from error
    return encoded


def of_item(error: InvalidInput, index: int) -> InvalidInput:
    """The same error, naming the item of the request that it is about."""
    field = f"items[{index}]" + (f".{error.param}" if error.param else "")
    return InvalidInput(f"{field}: {error}", param=field)
