"""Who wins among whole candidates, by score and by vote."""

from collections.abc import Sequence
from typing import Literal

from search.answers import count_votes
from search.run import by_score
from search.types import Candidate

Selection = Literal["prm", "weighted", "majority", "first"]


def rank_by(selection: Selection, candidates: Sequence[Candidate]) -> list[Candidate]:
    """All candidates, the winner first.

    By vote, the best candidate of each answer comes first, in the order of the answers; then the
    others, so that whoever shows several shows different answers. Where nobody gave an answer, by
    score.
    """
    if selection == "first":
        return sorted(candidates, key=lambda candidate: candidate.index)
    ranked = by_score(candidates)
    votes = count_votes(candidates)
    if selection == "prm" or not votes:
        return ranked
    if selection == "weighted":
        votes = sorted(votes, key=lambda vote: -(vote.weight or 0.0))
    place = {vote.answer: rank for rank, vote in enumerate(votes)}
    leaders: dict[str, Candidate] = {}
    for candidate in ranked:
        if (answer := answer_of(candidate)) is not None:
            leaders.setdefault(answer, candidate)
    first = sorted(leaders.values(), key=lambda leader: place[answer_of(leader) or ""])
    chosen = {leader.index for leader in first}
    return first + [candidate for candidate in ranked if candidate.index not in chosen]


def answer_of(candidate: Candidate) -> str | None:
    """The answer that a candidate votes for."""
    return candidate.group if candidate.group is not None else candidate.answer
