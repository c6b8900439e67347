"""Votes: the groups of candidates that gave the same final answer."""

from collections.abc import Sequence

from search.types import Candidate, Grade, Vote


def answer_of(candidate: Candidate) -> str | None:
    """The answer that a candidate votes for: its group's; before it is grouped, its own."""
    return candidate.group if candidate.group is not None else candidate.answer


def tests_passed(grade: Grade | None) -> int:
    """What answers are ranked by where there are tests: an answer that was not tested is last."""
    return grade.passed if grade is not None else -1


def count_votes(candidates: Sequence[Candidate]) -> list[Vote]:
    """Votes for each distinct answer, most votes first; among equals the first seen.

    Where the problem has tests, more of them passed comes before more votes.

    The weight is the sum of the candidates' scores, None when nothing was scored.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if (answer := answer_of(candidate)) is not None:
            groups.setdefault(answer, []).append(candidate)
    is_scored = any(candidate.score is not None for candidate in candidates)
    votes = [
        Vote(
            answer=answer,
            count=len(group),
            weight=sum(member.score or 0.0 for member in group) if is_scored else None,
            grade=group[0].grade,
        )
        for answer, group in groups.items()
    ]
    # By count alone: this is the baseline that a PRM is held against, so it takes no part.
    return sorted(votes, key=lambda vote: (-tests_passed(vote.grade), -vote.count))
