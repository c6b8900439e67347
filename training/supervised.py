"""Steps that train on responses that are there: imitation, and PRMs of a policy that stays."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prm.chat import ChatTokenizer
from training.algorithms.sft import sft_loss
from training.credit.base import frozen_logprobs
from training.credit.implicit import ImplicitTeacher
from training.credit.repirl import IrlTeacher
from training.credit.steps import Judged, StepTeacher
from training.data import Example, encode_example
from training.events import Events
from training.grades import Graded, Grader
from training.held_out import ResponseReader, trajectory_of
from training.labelled_outcomes import LabelledOutcomes
from training.labelled_steps import LabelledSteps
from training.learner import Learner
from training.models import TrainedLM, response_mask
from training.problems import ProblemSource
from training.rollout_batch import Group, RolloutBatch, Written, own_pieces
from training.spec import TaskData, TrainingJob
from training.step_labels import Labels, StepLabeller
from training.telling import PrmJudge
from training.trained_prm import TrainedPrm
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
    def learners(self) -> dict[str, Learner[Any]]:
        """What trains."""
        return {"policy": self.policy}

    def step(self, number: int) -> dict[str, float]:
        """One optimizer step on one solution per problem. Raises Diverged."""
        rng = random.Random(f"{self.job.seed}/{number}/solutions")
        examples = [
            encode_example(self.tokenizer, problem, self.data.task.solution(problem, rng))
            for problem in self.problems.draw(number, 0)
        ]
        tokens = float(sum(len(example.ids) - example.first for example in examples))
        with self.events.phase("update"):
            return self.policy.step(self._losses(examples, tokens)) | {"tokens": tokens}

    def _losses(self, examples: list[Example], tokens: float) -> Iterator[Float[Tensor, ""]]:
        device = self.policy.model.model.device
        total = torch.tensor(tokens, device=device)
        micro = self.policy.settings.micro_tokens
        ranks = self.policy.model.ranks
        for rows in own_pieces(ranks, examples, range(len(examples)), micro):
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
    prm: Learner[Any]
    judge: PrmJudge
    events: Events

    @property
    def learners(self) -> dict[str, Learner[Any]]:
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
        return self._teach(number, graded.groups) | reward_numbers(graded)

    @abstractmethod
    def _teach(self, number: int, groups: Sequence[Group]) -> dict[str, float]:
        """One optimizer step of the PRM, and what to tell of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflineIrl(OfflineTraining):
    """rePIRL's PRM, from demonstrations beside the rollouts."""

    teacher: IrlTeacher

    def _teach(self, number: int, groups: Sequence[Group]) -> dict[str, float]:
        with self.events.phase("update"):
            taught = self.teacher.teach(groups, self.prm.model.model.device)
        batch = RolloutBatch.of(groups)
        return taught.metrics | self.judge.numbers(batch, taught.token_rewards)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflinePrm(OfflineTraining):
    """An implicit PRM, from outcome labels."""

    teacher: ImplicitTeacher
    reference: TrainedLM

    def _teach(self, number: int, groups: Sequence[Group]) -> dict[str, float]:
        batch = RolloutBatch.of(groups, self.prm.model.model.device)
        with self.events.phase("reference"):
            divisor = frozen_logprobs(self.reference, batch, self.prm.settings.micro_tokens)
        with self.events.phase("update"):
            taught = self.teacher.teach(batch, divisor)
        return taught.metrics | self.judge.numbers(batch, taught.logprobs - divisor)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfflineSteps(OfflineTraining):
    """A PRM from labels of its rollouts' steps."""

    teacher: StepTeacher
    labeller: StepLabeller
    reader: ResponseReader
    trained: TrainedPrm

    def _teach(self, number: int, groups: Sequence[Group]) -> dict[str, float]:
        with self.events.phase("labels"):
            labels = self.labeller(groups, f"{self.job.seed}/{number}/labels")
        judged = [
            found
            for place, (group, own) in enumerate(zip(groups, labels, strict=True))
            for rollout, row in zip(group, own, strict=True)
            if (found := self._judged(rollout, row, place)) is not None
        ]
        rollouts = sum(len(group) for group in groups)
        with self.events.phase("update"):
            told = self.teacher.teach(judged)
        return told | {"unread_rollouts": float(rollouts - len(judged))}

    def _judged(self, rollout: Written, labels: Labels, group: int) -> Judged | None:
        """A rollout as the PRM reads it; None for one without steps, or that it cannot read."""
        trajectory = trajectory_of(rollout, self.reader)
        encoded = None if trajectory is None else self.trained.encode(trajectory)
        if encoded is None:
            return None
        first_error = self.reader.first_error
        return Judged(
            encoded=encoded,
            labels=labels,
            group=group,
            reward=rollout.reward,
            first_error=first_error(rollout.problem, rollout.text) if first_error else None,
            knows_first_error=first_error is not None,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledTraining:
    """A PRM from step labels out of files: nothing is sampled."""

    job: TrainingJob
    steps: LabelledSteps
    teacher: StepTeacher
    events: Events

    @property
    def learners(self) -> dict[str, Learner[Any]]:
        """What trains."""
        return {"prm": self.teacher.learner}

    def step(self, number: int) -> dict[str, float]:
        """One optimizer step on as many responses as there are problems in a step of rollouts."""
        judged = self.steps.draw(number, self.job.rollouts.problems)
        with self.events.phase("update"):
            told = self.teacher.teach(judged)
        return told | {"tokens": float(sum(len(item.encoded.ids) for item in judged))}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutcomeTraining:
    """An implicit PRM from outcome labels out of files: nothing is sampled."""

    job: TrainingJob
    outcomes: LabelledOutcomes
    teacher: ImplicitTeacher
    reference: TrainedLM
    events: Events

    @property
    def learners(self) -> dict[str, Learner[Any]]:
        """What trains."""
        return {"prm": self.teacher.learner}

    def step(self, number: int) -> dict[str, float]:
        """One optimizer step on as many responses as there are problems in a step of rollouts."""
        groups = self.outcomes.draw(number, self.job.rollouts.problems)
        learner = self.teacher.learner
        batch = RolloutBatch.of(groups, learner.model.model.device)
        with self.events.phase("reference"):
            divisor = frozen_logprobs(self.reference, batch, learner.settings.micro_tokens)
        with self.events.phase("update"):
            taught = self.teacher.teach(batch, divisor)
        return taught.metrics | {"tokens": float(batch.mask.sum())}


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
