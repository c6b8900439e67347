"""Who wins among whole candidates, by score and by vote."""

import math
from collections.abc import Sequence

from search.answers import answer_of, count_votes
from search.ranking import by_score
from search.selection import Selection, StepSelection
from search.types import Candidate


def rank_by(selection: Selection, candidates: Sequence[Candidate]) -> list[Candidate]:
    """All candidates, the winner first.

    By vote, the best candidate of each answer comes first, in the order of the answers; then the
    others, so that whoever shows several shows different answers. Where nobody gave an answer, by
    score. "calibrated" has probabilities where the others have scores: `search.selection`.
    """
    if selection == "first":
        return sorted(candidates, key=lambda candidate: candidate.index)
    is_calibrated = selection == "calibrated"
    ranked = _by_probability(candidates) if is_calibrated else by_score(candidates)
    votes = count_votes(candidates)
    if selection == "prm" or not votes:
        return ranked
    if selection == "weighted":
        votes = sorted(votes, key=lambda vote: -(vote.weight or 0.0))
    elif is_calibrated:
        votes = sorted(votes, key=lambda vote: -_probability_of(vote.answer, candidates))
    place = {vote.answer: rank for rank, vote in enumerate(votes)}
    leaders: dict[str, Candidate] = {}
    for candidate in ranked:
        if (answer := answer_of(candidate)) is not None:
            leaders.setdefault(answer, candidate)
    first = sorted(leaders.values(), key=lambda leader: place[answer_of(leader) or ""])
    chosen = {leader.index for leader in first}
    return first + [candidate for candidate in ranked if candidate.index not in chosen]


def rank_ended(selection: StepSelection, candidates: Sequence[Candidate]) -> list[Candidate]:
    """All candidates of a search in steps: those that came to an end by `selection`, the winner
    first, then the others by score. Half a text has no final answer to vote for.
    """
    ended = [c for c in candidates if c.finish_reason in ("stop", "length")]
    others = [c for c in candidates if c.finish_reason not in ("stop", "length")]
    return rank_by(selection, ended) + by_score(others)


def _by_probability(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (-(c.probability or 0.0), c.index))


def _probability_of(answer: str, candidates: Sequence[Candidate]) -> float:
    """What the candidates with this answer add up to."""
    return math.fsum(c.probability or 0.0 for c in candidates if answer_of(c) == answer)
