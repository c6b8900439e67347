"""From a finished search to the answer of `POST /v1/search`."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from prm.manifest import ModelVersion
from search.generator import Generator
from search.run import SearchRun
from search.types import Candidate, Grade, SearchResult, Vote
from server.schemas.answers import GradeOut
from server.schemas.search import (
    CandidateOut,
    NodeOut,
    SearchRequest,
    SearchResponse,
    SearchTiming,
    StepOut,
    UsageOut,
    VoteOut,
)
from server.serving import Lease


@dataclass(frozen=True, kw_only=True)
class PreparedSearch:
    """A search that was checked and has everything it needs, but has not begun.

    `lease` keeps its versions; whoever runs the search gives it back. The caller is given the
    `num_given` best of its candidates.
    """

    id: str
    request: SearchRequest
    run: SearchRun
    generator: Generator
    prm: ModelVersion | None
    lease: Lease
    started_s: float
    num_given: int


def search_response(prepared: PreparedSearch, result: SearchResult) -> SearchResponse:
    """Winner, candidates, tree and votes as far as they were asked for, and what it all cost."""
    request, run = prepared.request, prepared.run
    winner = result.winner
    return SearchResponse(
        id=prepared.id,
        created=int(time.time()),
        policy=prepared.generator.name,
        policy_version=prepared.generator.version,
        prm=prepared.prm.manifest.name if prepared.prm else None,
        prm_version=prepared.prm.manifest.version if prepared.prm else None,
        strategy=request.strategy.model_dump(),
        sampling=asdict(run.sampling),
        text=winner.text if winner else "",
        answer=winner.answer if winner else None,
        score=winner.score if winner else None,
        ranking=[candidate.index for candidate in result.ranking],
        candidates=[CandidateOut(**_candidate_fields(c)) for c in result.candidates]
        if "candidates" in request.include
        else None,
        tree=[NodeOut(**_candidate_fields(c), parent=c.parent, round=c.round) for c in run.tree]
        if "tree" in request.include
        else None,
        votes=[_vote(vote) for vote in result.votes],
        rounds=result.rounds,
        stopped_by=result.stopped_by,
        choice=result.choice,
        usage=UsageOut(**asdict(result.usage)),
        timing_ms=SearchTiming(
            generate=result.generate_ms,
            score=result.score_ms,
            total=1e3 * (time.perf_counter() - prepared.started_s),
        ),
    )


def _candidate_fields(candidate: Candidate) -> dict[str, Any]:
    return {
        "index": candidate.index,
        "text": candidate.text,
        "answer": candidate.answer,
        "steps": [
            StepOut(text=step.text, score=step.score.score if step.score else None)
            for step in candidate.steps
        ],
        "score": candidate.score,
        "finish_reason": candidate.finish_reason,
        "tokens": candidate.tokens,
        "tests": _grade(candidate.grade),
    }


def _vote(vote: Vote) -> VoteOut:
    return VoteOut(
        answer=vote.answer, count=vote.count, weight=vote.weight, tests=_grade(vote.grade)
    )


def _grade(grade: Grade | None) -> GradeOut | None:
    return None if grade is None else GradeOut(**asdict(grade))
