"""One search: what every strategy does its rounds with, and the result they all end in.

    run_search → strategy.rounds: run.write → run.score → prune → … → strategy.choose → result

A strategy is an async generator of events over rounds. It holds no model and no HTTP: it asks its
run to write and to score, and the run keeps the accounts.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from prm.aggregation import AggregationName
from prm.errors import InvalidInput
from prm.scorer import ScoredBatch
from prm.steps import cut_steps
from prm.types import ScoredTrajectory, Trajectory
from search.answers import count_votes, extract_answer
from search.budget import Budget, Meter
from search.generator import GenerateParams, Generator, Want, Written
from search.types import (
    Candidate,
    FinishReason,
    Sampling,
    ScoredStep,
    SearchEvent,
    SearchProblem,
    SearchResult,
    SearchUsage,
    StoppedBy,
)


class TrajectoryScorer(Protocol):
    """What a search asks of a PRM. `prm.scorer.Scorer` is one."""

    @property
    def step_separator(self) -> str: ...
    def check(self, trajectory: Trajectory) -> None: ...
    async def score(
        self, trajectories: Sequence[Trajectory], *, aggregation: AggregationName | None = None
    ) -> ScoredBatch: ...


class Strategy(Protocol):
    """How the budget is spent and the winner is chosen. One file each in `search/strategies/`."""

    def rounds(self, run: "SearchRun") -> AsyncGenerator[SearchEvent]:
        """Write, score and prune until done; leave the final candidates in `run.candidates`."""
        ...

    def choose(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The winner, one of these; None when there are none."""
        ...


class SearchRun:
    """The state of one search and its two verbs, `write` and `score`."""

    def __init__(
        self,
        problem: SearchProblem,
        generator: Generator,
        scorer: TrajectoryScorer | None,
        *,
        sampling: Sampling,
        budget: Budget,
        step_separator: str = "\n\n",
    ) -> None:
        self.problem = problem
        self.sampling = sampling
        self.scorer = scorer
        self.step_separator = scorer.step_separator if scorer else step_separator
        self.meter = Meter(budget)
        self.candidates: list[Candidate] = []
        self.tree: list[Candidate] = []
        self.rounds = 0
        self.stopped_by: StoppedBy = "finished"
        self._generator = generator
        self._prompt_tokens = 0
        self._scored_tokens = 0
        self._cached_tokens = 0
        self._generate_s = 0.0
        self._score_s = 0.0

    def can_pay(self, candidates: int) -> bool:
        """Whether the token budget still pays at least one token for each of so many."""
        share = self.meter.share(candidates)
        return share is None or share >= 1

    async def write(
        self, parents: Sequence[Candidate | None], *, one_step: bool
    ) -> AsyncGenerator[Candidate]:
        """One new candidate per parent (None: from the start), as each one ends.

        With `one_step` a candidate stops after the step separator; otherwise at its end. Each may
        write what its own limit and its equal share of the token budget leave; one that the budget
        cuts ends as "budget" and so does the search.
        """
        share = self.meter.share(len(parents))
        first = len(self.tree)
        self.tree.extend(
            Candidate(
                index=first + place,
                parent=parent.index if parent else None,
                round=self.rounds,
                tokens=parent.tokens if parent else 0,
            )
            for place, parent in enumerate(parents)
        )
        wants = [
            Want(
                number=first + place,
                prefix=parent.prefix if parent else Candidate(index=0).prefix,
                seed=derive_seed(self.sampling.seed, self.rounds, place),
                max_tokens=self._limit(parent, share),
            )
            for place, parent in enumerate(parents)
        ]
        params = GenerateParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_tokens,
            stop=self.sampling.stop,
            keep_stop=(self.step_separator,) if one_step else (),
            seconds=self.meter.seconds_left,
        )
        self.rounds += 1
        started = time.perf_counter()
        written = self._generator.generate(self.problem.messages, wants, params)
        async with aclosing(written) as stream:
            async for piece in stream:
                yield self._take(piece, share)
        self._generate_s += time.perf_counter() - started

    async def score(
        self, candidates: Sequence[Candidate], *, aggregation: AggregationName | None = None
    ) -> list[Candidate]:
        """The same candidates with steps and scores: one scoring call. Without a PRM, steps only.

        A candidate that is longer than the PRM reads keeps the score None. Raises InvalidInput
        when that is so for all of them.
        """
        started = time.perf_counter()
        trajectories = {
            candidate.index: Trajectory(
                messages=self.problem.messages,
                response=candidate.text,
                steps=cut_steps(candidate.text, self.step_separator),
            )
            for candidate in candidates
            if candidate.text.replace(self.step_separator, "").strip()
        }
        scored: dict[int, ScoredTrajectory] = {}
        if self.scorer and trajectories:
            readable = await asyncio.to_thread(_readable, self.scorer, trajectories)
            batch = await self.scorer.score(
                [trajectories[index] for index in readable], aggregation=aggregation
            )
            scored = dict(zip(readable, batch.items, strict=True))
            self._scored_tokens += sum(item.scored_tokens for item in batch.items)
            self._cached_tokens += sum(item.cached_tokens for item in batch.items)
        result = [
            _with_scores(c, trajectories.get(c.index), scored.get(c.index)) for c in candidates
        ]
        for candidate in result:
            self.tree[candidate.index] = candidate
        self._score_s += time.perf_counter() - started
        return result

    def end(self, candidate: Candidate, reason: FinishReason) -> Candidate:
        """The candidate, ended for this reason."""
        answer = candidate.answer if reason == "pruned" else extract_answer(candidate.text)
        ended = replace(candidate, finish_reason=reason, answer=answer)
        self.tree[candidate.index] = ended
        return ended

    def result(self, winner: Candidate | None) -> SearchResult:
        """What was found and what it cost."""
        generated = self.meter.generated_tokens
        return SearchResult(
            winner=winner,
            candidates=sorted(self.candidates, key=lambda candidate: candidate.index),
            votes=count_votes(self.candidates),
            rounds=self.rounds,
            stopped_by=self.stopped_by,
            usage=SearchUsage(
                prompt_tokens=self._prompt_tokens,
                generated_tokens=generated,
                discarded_tokens=generated - (winner.tokens if winner else 0),
                scored_tokens=self._scored_tokens,
                cached_tokens=self._cached_tokens,
            ),
            generate_ms=1e3 * self._generate_s,
            score_ms=1e3 * self._score_s,
        )

    def _limit(self, parent: Candidate | None, share: int | None) -> int:
        left = self.sampling.max_tokens - (parent.tokens if parent else 0)
        limit = left if share is None else min(left, share)
        assert limit >= 1, "nobody asks for a candidate that may write nothing"
        return limit

    def _take(self, written: Written, share: int | None) -> Candidate:
        """Book what was written and make it a candidate."""
        self.meter.generated_tokens += written.tokens
        draft = self.tree[written.number]
        tokens = draft.tokens + written.tokens
        self._prompt_tokens = written.prompt_tokens
        finish: FinishReason | None = None
        match written.ended_by:
            case "eos" | "stop":
                finish = "stop"
            case "length" if written.tokens == share and tokens < self.sampling.max_tokens:
                finish, self.stopped_by = "budget", "budget.tokens"
            case "length":
                finish = "length"
            case "deadline":
                finish, self.stopped_by = "budget", "budget.seconds"
        candidate = replace(
            draft,
            prefix=written.prefix,
            tokens=tokens,
            answer=extract_answer(written.prefix.text) if finish else None,
            finish_reason=finish,
        )
        self.tree[candidate.index] = candidate
        return candidate


async def run_search(
    strategy: Strategy, run: SearchRun
) -> AsyncGenerator[SearchEvent | SearchResult]:
    """Every event of the search, then its result. Closing the iterator ends all work for it."""
    async with aclosing(strategy.rounds(run)) as events:
        async for event in events:
            yield event
    yield run.result(strategy.choose(run.candidates))


def derive_seed(seed: int, round_: int, place: int) -> int:
    """A seed of its own for each continuation of a search, below 2^63."""
    digest = hashlib.sha256(f"{seed}/{round_}/{place}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def best_scored(candidates: Sequence[Candidate]) -> Candidate | None:
    """The highest score; among equals, and without scores, the first written."""
    return min(
        candidates,
        key=lambda c: (-(c.score if c.score is not None else -1.0), c.index),
        default=None,
    )


def _readable(scorer: TrajectoryScorer, trajectories: Mapping[int, Trajectory]) -> list[int]:
    """Indices of those that the PRM can read. Raises InvalidInput when there is none."""
    readable = []
    reason: InvalidInput | None = None
    for index, trajectory in trajectories.items():
        try:
            scorer.check(trajectory)
            readable.append(index)
        except InvalidInput as error:
            reason = error
    if reason is not None and not readable:
        raise InvalidInput(
            f"no candidate can be scored: {reason}; or lower sampling.max_tokens",
            param="sampling.max_tokens",
        ) from reason
    return readable


def _with_scores(
    candidate: Candidate, trajectory: Trajectory | None, scored: ScoredTrajectory | None
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
    )
