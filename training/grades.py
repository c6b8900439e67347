"""Outcome rewards of rollouts. What could not be graded has none: it is left out and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from training.rollout_batch import Group, Written
from training.tasks import Task


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


class TaskGrader:
    """A task's own exact outcome; a response that was cut off by its limit is wrong."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def grade(self, groups: Sequence[Group]) -> Graded:
        """See `Grader.grade`."""
        return Graded(
            groups=tuple([self._rewarded(rollout) for rollout in group] for group in groups),
            errors=0,
        )

    def _rewarded(self, rollout: Written) -> Written:
        reward = 0.0 if rollout.is_cut else self._task.reward(rollout.problem, rollout.text)
        return replace(rollout, reward=reward)
