"""Scoring, end to end: trajectories in, scored trajectories out.

    Scorer.score → family.encode → family.reads → engine → family.score → aggregates

The one path that the HTTP route, the searches and the command line share.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prm.aggregation import AggregationName, aggregate_all
from prm.chat import ChatTokenizer
from prm.errors import InvalidInput
from prm.families import FAMILIES
from prm.families.base import EncodedTrajectory, Family, LogprobRead
from prm.manifest import ModelVersion, PrmManifest
from prm.types import ScoredTrajectory, Trajectory


class ReadOutputs(Protocol):
    """What a backend returns: one list of float32 log-probs per read, and its own timings."""

    @property
    def outputs(self) -> Sequence[Sequence[float]]: ...
    @property
    def queue_ms(self) -> float: ...
    @property
    def inference_ms(self) -> float: ...


class Backend(Protocol):
    """Runs models: an engine process, later a vLLM server."""

    async def logprobs(self, reads: Sequence[LogprobRead]) -> ReadOutputs:
        """Raises Unavailable when no engine can answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Scored trajectories in the order they came, and where the milliseconds went."""

    items: tuple[ScoredTrajectory, ...]
    encode_ms: float
    queue_ms: float
    inference_ms: float


class Scorer:
    """Scores with one PRM version. A score depends on its trajectory alone, never on the batch."""

    def __init__(self, version: ModelVersion, backend: Backend) -> None:
        assert isinstance(version.manifest, PrmManifest)
        self.version = version
        self.manifest = version.manifest
        self._backend = backend
        self._family: Family = FAMILIES[self.manifest.family].bind(
            version, ChatTokenizer(version.folder)
        )

    @property
    def step_separator(self) -> str:
        """What stands between two steps in this version's training data."""
        return self.manifest.step_separator

    def check(self, trajectory: Trajectory) -> None:
        """Raises InvalidInput when the model cannot read this trajectory: it is too long."""
        self._family.encode(trajectory)

    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        """Score every step of every trajectory in as few forwards as the backend can.

        `aggregation` names the aggregate that becomes the trajectory's score; None is the
        version's own. Raises InvalidInput naming `items[i]` for one that the model cannot read.
        """
        started = time.perf_counter()
        # Tokenisation is pure CPU work; in a thread it does not hold up other requests.
        encoded = await asyncio.to_thread(self._encode_all, trajectories)
        encode_ms = 1e3 * (time.perf_counter() - started)
        reads = [self._family.reads(item) for item in encoded]
        read = await self._backend.logprobs([read for wanted in reads for read in wanted])
        outputs = iter(read.outputs)
        items = tuple(
            self._finish(trajectory, item, [next(outputs) for _ in wanted], aggregation)
            for trajectory, item, wanted in zip(trajectories, encoded, reads, strict=True)
        )
        return ScoredBatch(
            items=items,
            encode_ms=encode_ms,
            queue_ms=read.queue_ms,
            inference_ms=read.inference_ms,
        )

    def _encode_all(self, trajectories: Sequence[Trajectory]) -> list[EncodedTrajectory]:
        encoded = []
        for index, trajectory in enumerate(trajectories):
            try:
                encoded.append(self._family.encode(trajectory))
            except InvalidInput as error:
                field = f"items[{index}]" + (f".{error.param}" if error.param else "")
                raise InvalidInput(f"{field}: {error}", param=field) from error
        return encoded

    def _finish(
        self,
        trajectory: Trajectory,
        encoded: EncodedTrajectory,
        outputs: Sequence[Sequence[float]],
        aggregation: AggregationName | None,
    ) -> ScoredTrajectory:
        scored = self._family.score(encoded, outputs)
        assert len(scored.steps) == len(trajectory.steps), "one score per step"
        aggregates = aggregate_all([step.score for step in scored.steps])
        threshold = self.manifest.threshold
        return ScoredTrajectory(
            trajectory=trajectory,
            step_scores=scored.steps,
            aggregates=aggregates,
            score=aggregates[aggregation or self.manifest.aggregation],
            first_error=next(
                (i for i, step in enumerate(scored.steps) if step.score < threshold), None
            ),
            tokens=scored.tokens,
            prompt_tokens=len(encoded.ids),
            scored_tokens=len(encoded.ids) * len(outputs),
        )
