"""One search: what every strategy does its rounds with, and the result they all end in.

    run_search → strategy.rounds: run.write → run.score → prune → … → group → rank → result

A strategy is an async generator of events over rounds. It holds no model and no HTTP: it asks its
run to write (`writing.py`) and to score (`scoring.py`), and the run keeps the accounts.
"""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from prm.aggregation import AggregationName
from prm.calibrated import AnyScorer
from search.accounts import Accounts
from search.answers import StatedAnswers, TaskAnswers, count_votes
from search.budget import Budget, Meter
from search.generator import GenerateParams, Generator
from search.ranking import by_grade
from search.scoring import CandidateScorer, IfUnreadable
from search.selection import Selector
from search.types import (
    Candidate,
    FinishReason,
    Sampling,
    SearchEvent,
    SearchProblem,
    SearchResult,
    SearchUsage,
    StoppedBy,
)
from search.writing import Writing


class Strategy(Protocol):
    """How the budget is spent and the winner is chosen. One file each in `search/strategies/`."""

    def rounds(self, run: "SearchRun") -> AsyncGenerator[SearchEvent]:
        """Write, score and prune until done; leave the final candidates in `run.candidates`."""
        ...

    def rank(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """All of these, the winner first."""
        ...


class SearchRun:
    """The state of one search and its two verbs, `write` and `score`.

    Where it is not watched, nobody wants its events before its end, and the policy need not tell a
    text before the last one of a round has ended.
    """

    def __init__(
        self,
        problem: SearchProblem,
        generator: Generator,
        scorer: AnyScorer | None,
        *,
        sampling: Sampling,
        budget: Budget,
        step_separator: str = "\n\n",
        answers: TaskAnswers | None = None,
        selector: Selector | None = None,
    ) -> None:
        self.problem = problem
        self.sampling = sampling
        self.scorer = scorer
        self.step_separator = scorer.step_separator if scorer else step_separator
        self.candidates: list[Candidate] = []
        self.tree: list[Candidate] = []
        self.rounds = 0
        self.is_watched = True
        self.choice: Mapping[str, Any] | None = None
        self._accounts = Accounts(budget)
        self._generator = generator
        self._answers = answers or StatedAnswers()
        self._candidate_scorer = CandidateScorer(
            problem.messages,
            scorer,
            step_separator=self.step_separator,
            selector=selector,
            accounts=self._accounts,
        )

    @property
    def meter(self) -> Meter:
        """What of the budget is spent and left."""
        return self._accounts.meter

    @property
    def stopped_by(self) -> StoppedBy:
        """What the search is to end by; "finished" while nothing stops it."""
        return self._accounts.stopped_by

    @stopped_by.setter
    def stopped_by(self, reason: StoppedBy) -> None:
        self._accounts.stopped_by = reason

    def affordable(self, candidates: int) -> int:
        """See `Accounts.affordable`."""
        return self._accounts.affordable(candidates)

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
        writing = Writing(
            parents,
            tree=self.tree,
            accounts=self._accounts,
            sampling=self.sampling,
            answers=self._answers,
            round_=self.rounds,
            at_most=at_most,
        )
        params = GenerateParams(
            temperature=self.sampling.temperature if temperature is None else temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_tokens,
            stop=self.sampling.stop,
            keep_stop=(self.step_separator,) if one_step else (),
            seconds=self.meter.seconds_left,
            is_watched=self.is_watched,
        )
        self.rounds += 1
        started = time.perf_counter()
        written = self._generator.generate(self.problem.messages, writing.wants, params)
        async with aclosing(written) as stream:
            async for piece in stream:
                yield writing.take(piece)
        self._accounts.generate_s += time.perf_counter() - started

    async def score(
        self,
        candidates: Sequence[Candidate],
        *,
        aggregation: AggregationName | None = None,
        must_read: bool = True,
    ) -> list[Candidate]:
        """The same candidates with steps and scores: one scoring call. See `CandidateScorer`.

        Where the PRM can read none of them, the search stops if an earlier one came to its end with
        a score, and else InvalidInput is raised; unless they need not be read.
        """
        started = time.perf_counter()
        if_unreadable: IfUnreadable = "go_on"
        if must_read:
            if_unreadable = "stop" if any(map(_is_answer, self.tree)) else "raise"
        scored = await self._candidate_scorer.score(
            candidates, aggregation, if_unreadable=if_unreadable
        )
        for candidate in scored:
            self.tree[candidate.index] = candidate
        self._accounts.score_s += time.perf_counter() - started
        return scored

    async def group(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The same candidates, each with the answer that stands for all equivalent to its own.

        Where the problem has tests, with the grade of its answer, too.
        """
        answered = [candidate for candidate in candidates if candidate.answer is not None]
        answers = [candidate.answer or "" for candidate in answered]
        firsts = await self._answers.group(answers) if answers else []
        grades = await self._answers.grades(answers) if answers else []
        found = {
            candidate.index: (answers[first], grade)
            for candidate, first, grade in zip(answered, firsts, grades, strict=True)
        }
        classes = [found.get(candidate.index, (None, None)) for candidate in candidates]
        return [
            replace(candidate, group=group, grade=grade)
            for candidate, (group, grade) in zip(candidates, classes, strict=True)
        ]

    def end(self, candidate: Candidate, reason: FinishReason) -> Candidate:
        """The candidate, ended for this reason."""
        answer = candidate.answer if reason == "pruned" else self._answers.extract(candidate.text)
        ended = replace(candidate, finish_reason=reason, answer=answer)
        self.tree[candidate.index] = ended
        return ended

    def usage(self, winner: Candidate | None = None) -> SearchUsage:
        """See `Accounts.usage`."""
        return self._accounts.usage(winner)

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
            generate_ms=1e3 * self._accounts.generate_s,
            score_ms=1e3 * self._accounts.score_s,
            choice=self.choice,
        )


def _is_answer(candidate: Candidate) -> bool:
    return candidate.score is not None and candidate.finish_reason in ("stop", "length")


async def run_search(
    strategy: Strategy, run: SearchRun
) -> AsyncGenerator[SearchEvent | SearchResult]:
    """Every event of the search, then its result. Closing the iterator ends all work for it."""
    async with aclosing(strategy.rounds(run)) as events:
        async for event in events:
            yield event
    run.candidates = await run.group(run.candidates)
    yield run.result(by_grade(strategy.rank(run.candidates)))
