"""Which problems a step gets: the job and the step's number decide, so there is nothing to save."""

import random
from collections.abc import Sequence
from typing import Protocol

from training.datasets import Mixture, Source, load_mixture
from training.spec import FileData, LabelledData, TaskData, TrainingJob
from training.tasks import Task
from training.types import Problem


class ProblemSource(Protocol):
    """Problems by step. `draw` counts the tries within a step."""

    def draw(self, step: int, draw: int) -> Sequence[Problem]:
        """The problems of one try of one step."""
        ...


class FreshProblems:
    """New problems of a task every time."""

    def __init__(self, task: Task, count: int, seed: int) -> None:
        self._task = task
        self._count = count
        self._seed = seed

    def draw(self, step: int, draw: int) -> Sequence[Problem]:
        """See `ProblemSource.draw`."""
        seed = random.Random(f"{self._seed}/{step}/{draw}/problems").getrandbits(32)
        return self._task.problems(seed, self._count, "train")


class FixedProblems:
    """A mixture of fixed sets, in passes. Tries that are not needed leave their problems unseen."""

    def __init__(self, mixture: Mixture, count: int, most_draws: int) -> None:
        self._mixture = mixture
        self._count = count
        self._most_draws = most_draws

    def draw(self, step: int, draw: int) -> Sequence[Problem]:
        """See `ProblemSource.draw`."""
        first = ((step - 1) * self._most_draws + draw) * self._count
        return self._mixture.take(first, self._count)


def problems_of(job: TrainingJob) -> ProblemSource:
    """The source that a job's data asks for.

    Raises InvalidInput for a task that has too few problems, and for files that cannot be used.
    """
    count, most_draws = job.rollouts.problems, job.rollouts.most_draws
    match job.data:
        case TaskData(task=task, problems=None):
            return FreshProblems(task, count, job.seed)
        case TaskData(task=task, problems=fixed):
            assert fixed is not None
            source = Source(name="task", problems=task.problems(job.seed, fixed, "train"))
            mixture = Mixture([source], job.seed)
        case FileData(sources=sources):
            mixture = load_mixture(sources, job.seed).mixture
        case LabelledData():
            raise AssertionError("labelled responses are no problems to be solved")
    return FixedProblems(mixture, count, most_draws)


def held_out_problems(job: TrainingJob, count: int) -> Sequence[Problem]:
    """`count` problems that the run does not train on, the same every time."""
    match job.data:
        case TaskData(task=task):
            return task.problems(job.seed, count, "validation")
        case FileData(held_out=sources):
            return load_mixture(sources, job.seed).mixture.take(0, count)
        case LabelledData():
            raise AssertionError("labelled responses are no problems to be solved")
