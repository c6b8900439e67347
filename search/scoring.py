"""Step scores for a search's candidates: one call of the PRM per round, each text read once."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from prm.aggregation import AggregationName
from prm.calibrated import AnyScorer
from prm.errors import InvalidInput
from prm.steps import cut_steps
from prm.types import Message, ScoredTrajectory, Trajectory
from search.accounts import Accounts
from search.selection import Selector
from search.types import Candidate, ScoredStep

IfUnreadable = Literal["raise", "stop", "go_on"]


class CandidateScorer:
    """Gives candidates steps and, where there is a PRM, scores; books what the PRM read."""

    def __init__(
        self,
        messages: tuple[Message, ...],
        scorer: AnyScorer | None,
        *,
        step_separator: str,
        selector: Selector | None,
        accounts: Accounts,
    ) -> None:
        self._messages = messages
        self._scorer = scorer
        self._step_separator = step_separator
        self._selector = selector
        self._accounts = accounts

    async def score(
        self,
        candidates: Sequence[Candidate],
        aggregation: AggregationName | None,
        *,
        if_unreadable: IfUnreadable,
    ) -> list[Candidate]:
        """The same candidates with steps and scores. Without a PRM, steps only.

        A candidate that is longer than the PRM reads keeps the score None. When that is so for all
        of them, "raise" raises InvalidInput, "stop" stops the search and "go_on" does neither.
        """
        trajectories = {
            candidate.index: Trajectory(
                messages=self._messages,
                response=candidate.text,
                steps=cut_steps(candidate.text, self._step_separator),
            )
            for candidate in candidates
            if candidate.text.replace(self._step_separator, "").strip()
        }
        scored: Mapping[int, ScoredTrajectory] = {}
        if self._scorer and trajectories:
            scored = await self._read(self._scorer, trajectories, aggregation, if_unreadable)
        return [
            self._with_scores(each, trajectories.get(each.index), scored.get(each.index))
            for each in candidates
        ]

    async def _read(
        self,
        scorer: AnyScorer,
        trajectories: Mapping[int, Trajectory],
        aggregation: AggregationName | None,
        if_unreadable: IfUnreadable,
    ) -> Mapping[int, ScoredTrajectory]:
        """The scores of those that the PRM can read; a text that several wrote is read once."""
        firsts: dict[str, int] = {}
        for index, trajectory in trajectories.items():
            firsts.setdefault(trajectory.response, index)
        distinct = {index: trajectories[index] for index in firsts.values()}
        items = await self._items(scorer, distinct, aggregation, if_unreadable)
        scored = {}
        for index, trajectory in trajectories.items():
            first = firsts[trajectory.response]
            if first in items:
                item = scored[index] = items[first]
                read = item.scored_tokens if index == first else 0
                self._accounts.scored_tokens += read
                self._accounts.cached_tokens += item.scored_tokens + item.cached_tokens - read
        return scored

    async def _items(
        self,
        scorer: AnyScorer,
        trajectories: Mapping[int, Trajectory],
        aggregation: AggregationName | None,
        if_unreadable: IfUnreadable,
    ) -> Mapping[int, ScoredTrajectory]:
        """Those that the PRM can read, scored in one call."""
        readable = list(trajectories)
        try:
            batch = await scorer.score(list(trajectories.values()), aggregation=aggregation)
        except InvalidInput:
            # Only now is it worth tokenising each on its own, to find those that are too long.
            readable, reason = await asyncio.to_thread(_readable, scorer, trajectories)
            if reason is None:
                raise
            if not readable:
                if if_unreadable == "raise":
                    raise InvalidInput(
                        f"no candidate can be scored: {reason}; or lower sampling.max_tokens",
                        param="sampling.max_tokens",
                    ) from reason
                if if_unreadable == "stop":
                    self._accounts.stopped_by = "prm.context"
                return {}
            batch = await scorer.score([trajectories[i] for i in readable], aggregation=aggregation)
        return dict(zip(readable, batch.items, strict=True))

    def _with_scores(
        self, candidate: Candidate, trajectory: Trajectory | None, scored: ScoredTrajectory | None
    ) -> Candidate:
        if trajectory is None:
            return candidate
        # An outcome reward model scores the whole as one step.
        steps = scored.trajectory.steps if scored else trajectory.steps
        scores = scored.step_scores if scored else [None] * len(steps)
        return replace(
            candidate,
            steps=tuple(
                ScoredStep(text=step.text, score=score)
                for step, score in zip(steps, scores, strict=True)
            ),
            score=scored.score if scored else None,
            probability=self._selector.probability([score.score for score in scored.step_scores])
            if self._selector and scored
            else None,
        )


def _readable(
    scorer: AnyScorer, trajectories: Mapping[int, Trajectory]
) -> tuple[list[int], InvalidInput | None]:
    """Indices of those that the PRM can read, and why it cannot read another one."""
    readable = []
    reason: InvalidInput | None = None
    for index, trajectory in trajectories.items():
        try:
            scorer.check(trajectory)
            readable.append(index)
        except InvalidInput as error:
            reason = error
    return readable, reason
