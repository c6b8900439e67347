"""Steps that train on responses that are there: imitation, and PRMs of a policy that stays."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prm.chat import ChatTokenizer
from training.algorithms.sft import sft_loss
from training.credit.base import frozen_logprobs
from training.credit.implicit import ImplicitTeacher
from training.credit.repirl import IrlTeacher
from training.data import Example, encode_example
from training.events import Events
from training.grades import Graded, Grader
from training.learner import Learner
from training.models import TrainedLM, response_mask
from training.problems import ProblemSource
from training.rollout_batch import Group, RolloutBatch, cut_by_tokens
from training.spec import TaskData, TrainingJob
from training.writers import Writer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imitation:
    """SFT on a task's supervised solutions, with the slips that the task's settings ask for."""

    job: TrainingJob
    data: TaskData
    problems: ProblemSource
    tokenizer: ChatTokenizer
    policy: Learner
    events: Events

    @property
    def learners(self) -> dict[str, Learner]:
        """What trains."""
        return {"policy": self.policy}

    def step(self, number: int) -> dict[str, float]:
        """One optimizer step on one solution per problem. Raises Diverged."""
        rng = random.Random(f"{self.job.seed}/{number}/solutions")
        examples = [
            encode_example(self.tokenizer, problem, self.data.task.solution(problem, rng))
            for problem in self.problems.draw(number, 0)
        ]
        with self.events.phase("update"):
            return self.policy.step(self._losses(examples))

    def _losses(self, examples: list[Example]) -> Iterator[Float[Tensor, ""]]:
        device = self.policy.model.model.device
        tokens = sum(len(example.ids) - example.first for example in examples)
        total = torch.tensor(float(tokens), device=device)
        micro = self.policy.settings.micro_tokens
        for rows in cut_by_tokens(examples, range(len(examples)), micro):
            some = [examples[row] for row in rows]
            mask = response_mask(some, device)
            yield sft_loss(self.policy.model.logprobs(some), mask, total=total)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflineTraining(ABC):
    """A PRM of a policy that does not train: its rollouts, their outcomes, one step."""

    job: TrainingJob
    problems: ProblemSource
    writer: Writer
    grader: Grader
    prm: Learner
    events: Events

    @property
    def learners(self) -> dict[str, Learner]:
        """What trains."""
        return {"prm": self.prm}

    def step(self, number: int) -> dict[str, float]:
        """Roll out, grade, and train the PRM once. Raises Diverged."""
        with self.events.phase("rollouts"):
            written = self.writer.write(
                self.problems.draw(number, 0),
                seed=f"{self.job.seed}/{number}/0",
                policy_step=0,
                per_problem=self.job.rollouts.per_problem,
            )
        with self.events.phase("grading"):
            graded = self.grader.grade(written)
        return self._teach(graded.groups) | reward_numbers(graded)

    @abstractmethod
    def _teach(self, groups: Sequence[Group]) -> dict[str, float]:
        """One optimizer step of the PRM, and what to tell of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflineIrl(OfflineTraining):
    """rePIRL's PRM, from demonstrations beside the rollouts."""

    teacher: IrlTeacher

    def _teach(self, groups: Sequence[Group]) -> dict[str, float]:
        with self.events.phase("update"):
            return self.teacher.teach(groups, self.prm.model.model.device).metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflinePrm(OfflineTraining):
    """An implicit PRM, from outcome labels."""

    teacher: ImplicitTeacher
    reference: TrainedLM

    def _teach(self, groups: Sequence[Group]) -> dict[str, float]:
        batch = RolloutBatch.of(groups, self.prm.model.model.device)
        with self.events.phase("reference"):
            divisor = frozen_logprobs(self.reference, batch, self.prm.settings.micro_tokens)
        with self.events.phase("update"):
            return self.teacher.teach(batch, divisor).metrics


def reward_numbers(graded: Graded) -> dict[str, float]:
    """What the events tell of a step's rollouts."""
    rollouts = [rollout for group in graded.groups for rollout in group]
    count = max(1, len(rollouts))
    return {
        "reward": sum(rollout.reward for rollout in rollouts) / count,
        "accuracy": sum(rollout.reward >= 1 for rollout in rollouts) / count,
        "rollouts": float(len(rollouts)),
        "grading_errors": float(graded.errors),
        "tokens": float(sum(len(rollout.logprobs) for rollout in rollouts)),
    }
