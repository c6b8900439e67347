"""A task's own exact outcome, in this process: tasks read any text in linear time."""

from collections.abc import Sequence

from training.tasks import Task
from training.types import Problem
from training.verifiers.base import Outcome


class TaskJudge:
    """Never in error. Only for tasks that know their outcome (`Task.graded_by`)."""

    def __init__(self, task: Task) -> None:
        assert task.graded_by == "task", "its problems' tests are run by CodeVerifier"
        self._task = task

    def grade(self, items: Sequence[tuple[Problem, str]]) -> list[Outcome]:
        """The outcome of each response, in order."""
        return [Outcome(reward=self._task.reward(problem, text)) for problem, text in items]
