"""A generator and a scorer that follow a script, so that the right outcome is known by hand."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from prm.aggregation import AggregationName, aggregate_all
from prm.errors import InvalidInput
from prm.scorer import ScoredBatch
from prm.types import Message, ScoredTrajectory, StepScore, Trajectory
from search.generator import EndedBy, GenerateParams, Want, Written
from search.types import Prefix


class ScriptedGenerator:
    """Continues a prefix with what `script(prefix, nth)` says: text and how it ended.

    `nth` counts the continuations of the same prefix within one call. A token is a character.
    """

    name = "scripted"
    version = "1"

    def __init__(self, script: Callable[[str, int], tuple[str, EndedBy]]) -> None:
        self._script = script
        self.calls: list[tuple[Sequence[Want], GenerateParams]] = []
        self.is_open = False

    async def generate(
        self, messages: Sequence[Message], wants: Sequence[Want], params: GenerateParams
    ) -> AsyncGenerator[Written]:
        """One `Written` per want, last want first: order of arrival is not order of asking."""
        self.calls.append((wants, params))
        self.is_open = True
        counts: dict[str, int] = {}
        answers = []
        for want in wants:
            nth = counts.setdefault(want.prefix.text, 0)
            counts[want.prefix.text] += 1
            text, ended_by = self._script(want.prefix.text, nth)
            if len(text) > want.limit(params):
                text, ended_by = text[: want.limit(params)], "length"
            answers.append(
                Written(
                    number=want.number,
                    prefix=Prefix(text=want.prefix.text + text),
                    tokens=len(text),
                    prompt_tokens=5,
                    ended_by=ended_by,
                )
            )
        try:
            for answer in reversed(answers):
                await asyncio.sleep(0)
                yield answer
        finally:
            self.is_open = False


class ScriptedScorer:
    """Scores a step by what `script(step text)` says."""

    step_separator = "\n"

    def __init__(
        self, script: Callable[[str], float], *, longest: int = 10_000, aggregation: str = "min"
    ) -> None:
        self._script = script
        self._longest = longest
        self._aggregation = aggregation
        self.calls: list[Sequence[Trajectory]] = []

    def check(self, trajectory: Trajectory) -> None:
        """Raises InvalidInput for a response of more characters than `longest`."""
        if len(trajectory.response) > self._longest:
            raise InvalidInput("too long")

    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch:
        """The script's scores. Raises InvalidInput as `check` does."""
        for trajectory in trajectories:
            self.check(trajectory)
        self.calls.append(trajectories)
        return ScoredBatch(
            items=tuple(self._scored(t, aggregation) for t in trajectories),
            encode_ms=0,
            queue_ms=0,
            inference_ms=0,
        )

    def _scored(self, trajectory: Trajectory, aggregation: str | None) -> ScoredTrajectory:
        scores = [self._script(step.text) for step in trajectory.steps]
        aggregates = {str(name): value for name, value in aggregate_all(scores).items()}
        return ScoredTrajectory(
            trajectory=trajectory,
            step_scores=tuple(StepScore(raw=score, score=score) for score in scores),
            aggregates=aggregate_all(scores),
            score=aggregates[aggregation or self._aggregation],
            first_error=None,
            tokens=None,
            prompt_tokens=len(trajectory.response),
            cached_tokens=0,
            cached_steps=0,
            scored_tokens=len(trajectory.response),
        )
