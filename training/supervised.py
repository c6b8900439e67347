"""Steps that train on responses that are there: imitation, and PRMs of a policy that stays."""

import random
from collections.abc import Iterator
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
from training.rollout_batch import RolloutBatch, cut_by_tokens
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfflineIrl:
    """rePIRL's PRM of a policy that does not train: its rollouts, demonstrations, one step."""

    job: TrainingJob
    problems: ProblemSource
    writer: Writer
    grader: Grader
    teacher: IrlTeacher
    reference: TrainedLM
    events: Events

    @property
    def learners(self) -> dict[str, Learner]:
        """What trains."""
        return {"prm": self.teacher.learner}

    def step(self, number: int) -> dict[str, float]:
        """Roll out, grade, and train the PRM once. Raises Diverged."""
        graded = graded_rollouts(self, number)
        with self.events.phase("update"):
            taught = self.teacher.teach(graded.groups, self.reference.model.device)
        return taught.metrics | reward_numbers(graded)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OfflinePrm:
    """An implicit PRM of a policy that does not train: its rollouts, their outcomes, one step."""

    job: TrainingJob
    problems: ProblemSource
    writer: Writer
    grader: Grader
    teacher: ImplicitTeacher
    reference: TrainedLM
    events: Events

    @property
    def learners(self) -> dict[str, Learner]:
        """What trains."""
        return {"prm": self.teacher.learner}

    def step(self, number: int) -> dict[str, float]:
        """Roll out, grade, and train φ once. Raises Diverged."""
        graded = graded_rollouts(self, number)
        batch = RolloutBatch.of(graded.groups, self.reference.model.device)
        with self.events.phase("reference"):
            micro = self.teacher.learner.settings.micro_tokens
            divisor = frozen_logprobs(self.reference, batch, micro)
        with self.events.phase("update"):
            taught = self.teacher.teach(batch, divisor)
        return taught.metrics | reward_numbers(graded)


def graded_rollouts(training: OfflinePrm | OfflineIrl, number: int) -> Graded:
    """What the policy writes for the problems of a step, with rewards."""
    with training.events.phase("rollouts"):
        written = training.writer.write(
            training.problems.draw(number, 0),
            seed=f"{training.job.seed}/{number}/0",
            policy_step=0,
            per_problem=training.job.rollouts.per_problem,
        )
    with training.events.phase("grading"):
        return training.grader.grade(written)


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
