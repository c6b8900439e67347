"""Outcome rewards of rollouts. What could not be graded has none: it is left out and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from training.ranks import Ranks
from training.rollout_batch import Group
from training.types import Problem
from training.verifiers import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """Groups with rewards, in order; `errors` counts the rollouts that are missing in them."""

    groups: tuple[Group, ...]
    errors: int


class Grader(Protocol):
    """Grades what a policy wrote."""

    def grade(self, groups: Sequence[Group]) -> Graded:
        """Every rollout with its outcome reward in [0, 1]."""
        ...


class SharedGrader:
    """Each rank grades what it wrote, and has what all have graded."""

    def __init__(self, grader: Grader, ranks: Ranks) -> None:
        self._grader = grader
        self._ranks = ranks

    def grade(self, groups: Sequence[Group]) -> Graded:
        """See `Grader.grade`; `groups` are this rank's."""
        own = self._grader.grade(groups)
        return Graded(
            groups=tuple(self._ranks.gather(own.groups)),
            errors=sum(self._ranks.gather([own.errors])),
        )


class Judge(Protocol):
    """Tells outcomes: a pool of a verifier's workers, or a task itself."""

    def grade(self, items: Sequence[tuple[Problem, str]]) -> Sequence[Outcome]:
        """The outcome of each response to its problem, in order."""
        ...


class OutcomeGrader:
    """What a judge says of each response.

    A response that was cut off by its limit is wrong, and is not judged. A group of which nothing
    could be graded is left out.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def grade(self, groups: Sequence[Group]) -> Graded:
        """See `Grader.grade`."""
        whole = [rollout for group in groups for rollout in group if not rollout.is_cut]
        outcomes = iter(self._judge.grade([(rollout.problem, rollout.text) for rollout in whole]))
        wrong = Outcome(reward=0.0)
        graded, errors = [], 0
        for group in groups:
            rewarded = []
            for rollout in group:
                outcome = wrong if rollout.is_cut else next(outcomes)
                if outcome.reward is None:
                    errors += 1
                else:
                    rewarded.append(replace(rollout, reward=outcome.reward))
            if rewarded:
                graded.append(rewarded)
        return Graded(groups=tuple(graded), errors=errors)
