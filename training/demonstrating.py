"""Demonstrations: responses of a task's expert to the problems that the policy has just tried."""

import random
from collections.abc import Sequence

from prm.chat import ChatTokenizer
from training.data import encode_example
from training.rollout_batch import Group, Written
from training.tasks import Task
from training.types import Problem


class TaskExperts:
    """`count` demonstrations per problem, the same for a problem whenever it is asked for.

    Each has its own outcome: an expert may be noisy.
    """

    def __init__(self, task: Task, tokenizer: ChatTokenizer, count: int, seed: int) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._count = count
        self._seed = seed

    def __call__(self, groups: Sequence[Group]) -> list[list[Written]]:
        """Graded demonstrations of each group's problem, in order."""
        return [self._of(group[0].problem) for group in groups]

    def _of(self, problem: Problem) -> list[Written]:
        rng = random.Random(f"{self._seed}/{problem.text}/expert")
        return [self._written(problem, rng) for _ in range(self._count)]

    def _written(self, problem: Problem, rng: random.Random) -> Written:
        text = self._task.expert(problem, rng)
        example = encode_example(self._tokenizer, problem, text)
        return Written(
            problem=problem,
            example=example,
            text=text,
            # Nobody sampled it.
            logprobs=(0.0,) * (len(example.ids) - example.first),
            policy_step=0,
            is_cut=False,
            reward=self._task.reward(problem, text),
        )
