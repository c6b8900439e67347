"""One search: what every strategy does its rounds with, and the result they all end in.

    run_search → strategy.rounds: run.write → run.score → prune → … → group → rank → result

A strategy is an async generator of events over rounds. It holds no model and no HTTP: it asks its
run to write and to score, and the run keeps the accounts.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from prm.aggregation import AggregationName
from prm.errors import InvalidInput
from prm.scorer import ScoredBatch
from prm.steps import cut_steps
from prm.types import ScoredTrajectory, Trajectory
from search.answers import Equivalence, ExactAnswers, count_votes, extract_answer
from search.budget import Budget, Meter
from search.generator import GenerateParams, Generator, Want, Written
from search.selection import Selector
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


@dataclass(frozen=True, slots=True)
class _Cut:
    """How much a candidate may write now, and why it ends there. None: it does not."""

    tokens: int
    reason: FinishReason | None


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

    def rank(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """All of these, the winner first."""
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
        equivalence: Equivalence | None = None,
        selector: Selector | None = None,
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
        self.choice: Mapping[str, Any] | None = None
        self._generator = generator
        self._equivalence = equivalence or ExactAnswers()
        self._selector = selector
        self._cuts: dict[int, _Cut] = {}
        self._prompt_tokens = 0
        self._scored_tokens = 0
        self._cached_tokens = 0
        self._generate_s = 0.0
        self._score_s = 0.0

    def affordable(self, candidates: int) -> int:
        """How many of so many continuations the budget still pays, with a token for each.

        Fewer than asked for is noted as what the search was stopped by.
        """
        tokens, calls = self.meter.tokens_left, self.meter.calls_left
        paid = candidates
        if tokens is not None and tokens < paid:
            paid, self.stopped_by = tokens, "budget.tokens"
        if calls is not None and calls < paid:
            paid, self.stopped_by = calls, "budget.calls"
        if self.meter.seconds_left == 0:
            paid, self.stopped_by = 0, "budget.seconds"
        return paid

    async def write(
        self,
        parents: Sequence[Candidate | None],
        *,
        one_step: bool,
        at_most: int | None = None,
        temperature: float | None = None,
    ) -> AsyncGenerator[Candidate]:
        """One new candidate per parent (None: from the start), as each one ends.

        With `one_step` a candidate stops after the step separator; otherwise at its end, or after
        `at_most` tokens, which do not end it. Each may write what its own limit and its equal share
        of the token budget leave; one that the budget cuts ends as "budget" and so does the search.
        Ask for no more than `affordable`. `temperature` None is the search's own.
        """
        share = self.meter.share(len(parents))
        first = len(self.tree)
        cuts = [self._cut(parent, share, at_most) for parent in parents]
        self._cuts = {first + place: cut for place, cut in enumerate(cuts)}
        self.meter.calls += len(parents)
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
                max_tokens=cuts[place].tokens,
            )
            for place, parent in enumerate(parents)
        ]
        params = GenerateParams(
            temperature=self.sampling.temperature if temperature is None else temperature,
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
                yield self._take(piece)
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
        scored: Mapping[int, ScoredTrajectory] = {}
        if self.scorer and trajectories:
            scored = await self._read(self.scorer, trajectories, aggregation)
        result = [
            _with_scores(c, trajectories.get(c.index), scored.get(c.index), self._selector)
            for c in candidates
        ]
        for candidate in result:
            self.tree[candidate.index] = candidate
        self._score_s += time.perf_counter() - started
        return result

    async def group(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The same candidates, each with the answer that stands for all equivalent to its own."""
        answered = [candidate for candidate in candidates if candidate.answer is not None]
        answers = [candidate.answer or "" for candidate in answered]
        firsts = await self._equivalence.group(answers) if answers else []
        groups = {
            candidate.index: answers[first]
            for candidate, first in zip(answered, firsts, strict=True)
        }
        return [replace(c, group=groups.get(c.index)) for c in candidates]

    def end(self, candidate: Candidate, reason: FinishReason) -> Candidate:
        """The candidate, ended for this reason."""
        answer = candidate.answer if reason == "pruned" else extract_answer(candidate.text)
        ended = replace(candidate, finish_reason=reason, answer=answer)
        self.tree[candidate.index] = ended
        return ended

    def usage(self, winner: Candidate | None = None) -> SearchUsage:
        """What was spent until now; all of it is discarded but the winner's tokens."""
        generated = self.meter.generated_tokens
        return SearchUsage(
            policy_calls=self.meter.calls,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=generated,
            discarded_tokens=generated - (winner.tokens if winner else 0),
            scored_tokens=self._scored_tokens,
            cached_tokens=self._cached_tokens,
        )

    def result(self, ranking: Sequence[Candidate]) -> SearchResult:
        """What was found and what it cost."""
        winner = ranking[0] if ranking else None
        return SearchResult(
            winner=winner,
            ranking=ranking,
            candidates=sorted(self.candidates, key=lambda candidate: candidate.index),
            votes=count_votes(self.candidates),
            rounds=self.rounds,
            stopped_by=self.stopped_by,
            usage=self.usage(winner),
            generate_ms=1e3 * self._generate_s,
            score_ms=1e3 * self._score_s,
            choice=self.choice,
        )

    async def _read(
        self,
        scorer: TrajectoryScorer,
        trajectories: Mapping[int, Trajectory],
        aggregation: AggregationName | None,
    ) -> Mapping[int, ScoredTrajectory]:
        """The scores of those that the PRM can read; a text that several wrote is read once."""
        firsts: dict[str, int] = {}
        for index, trajectory in trajectories.items():
            firsts.setdefault(trajectory.response, index)
        distinct = {index: trajectories[index] for index in firsts.values()}
        readable = await asyncio.to_thread(_readable, scorer, distinct)
        batch = await scorer.score([distinct[i] for i in readable], aggregation=aggregation)
        items = dict(zip(readable, batch.items, strict=True))
        scored = {}
        for index, trajectory in trajectories.items():
            first = firsts[trajectory.response]
            if first in items:
                item = scored[index] = items[first]
                read = item.scored_tokens if index == first else 0
                self._scored_tokens += read
                self._cached_tokens += item.scored_tokens + item.cached_tokens - read
        return scored

    def _cut(self, parent: Candidate | None, share: int | None, at_most: int | None) -> _Cut:
        """The least of a candidate's own limit, its share of the budget and `at_most`."""
        left = self.sampling.max_tokens - (parent.tokens if parent else 0)
        cut = _Cut(left, "length")
        if share is not None and share < cut.tokens:
            cut = _Cut(share, "budget")
        # Of equals: what others leave of their shares may pay for more.
        if at_most is not None and at_most < cut.tokens + (cut.reason == "budget"):
            cut = _Cut(at_most, None)
        assert cut.tokens >= 1, "nobody asks for a candidate that may write nothing"
        return cut

    def _take(self, written: Written) -> Candidate:
        """Book what was written and make it a candidate."""
        self.meter.generated_tokens += written.tokens
        draft = self.tree[written.number]
        draft_text = self.tree[draft.parent].text if draft.parent is not None else ""
        tokens = draft.tokens + written.tokens
        self._prompt_tokens = written.prompt_tokens
        finish: FinishReason | None = None
        match written.ended_by:
            case "eos" | "stop":
                finish = "stop"
            case "separator" if written.prefix.text == draft_text:
                # A policy that says nothing would say nothing for ever.
                finish = "stop"
            case "length":
                # Short of what it was allowed, the model's context was full.
                cut = self._cuts[written.number]
                finish = cut.reason if written.tokens >= cut.tokens else "length"
                if finish == "budget":
                    self.stopped_by = "budget.tokens"
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
    run.candidates = await run.group(run.candidates)
    yield run.result(strategy.rank(run.candidates))


def derive_seed(seed: int, round_: int, place: int) -> int:
    """A seed of its own for each continuation of a search, below 2^63."""
    digest = hashlib.sha256(f"{seed}/{round_}/{place}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def by_score(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The highest score first; equals, and those without a score, in the order written."""
    return sorted(
        candidates, key=lambda c: (-(c.score if c.score is not None else -math.inf), c.index)
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
    candidate: Candidate,
    trajectory: Trajectory | None,
    scored: ScoredTrajectory | None,
    selector: Selector | None,
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
        probability=selector.probability([score.score for score in scored.step_scores])
        if selector and scored
        else None,
    )
