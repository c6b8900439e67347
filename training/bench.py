"""What a run is measured on, beside its steps: held-out problems, or labelled responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prm.chat import ChatTokenizer
from training.credit.steps import step_figures
from training.grades import Grader
from training.heads import TrainedHead
from training.held_out import (
    ResponseReader,
    policy_figures,
    ranking_figures,
    step_rewards,
    trajectory_of,
)
from training.labelled_steps import LabelledSteps
from training.learner import Learner
from training.models import TrainedLM
from training.problems import held_out_problems
from training.ranks import Ranks
from training.rollout_batch import Group, Written
from training.settings import StepBce
from training.spec import Evaluation, TrainingJob
from training.trained_prm import TrainedPrm
from training.types import Problem
from training.writers import Writer

Learners = Mapping[str, Learner[Any]]
# A problem and the steps of a response to it.
Item = tuple[str, list[str]]


class Bench(Protocol):
    """Where the models of a run are measured."""

    def evaluate(self, settings: Evaluation, learners: Learners) -> dict[str, float]:
        """Figures of the models as they are."""
        ...

    def items(self, count: int, learners: Learners) -> list[Item]:
        """Responses for golden scores: in the characters that the models read."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutBench:
    """The policy on held-out problems, the same every time, and the PRM where one trains."""

    job: TrainingJob
    tokenizer: ChatTokenizer
    writer: Writer
    grader: Grader
    reader: ResponseReader
    reference: TrainedLM | None
    prm: TrainedPrm | None
    ranks: Ranks

    def evaluate(self, settings: Evaluation, learners: Learners) -> dict[str, float]:
        """See `Bench.evaluate`."""
        problems = held_out_problems(self.job, settings.problems)
        written = self._write(problems, "held-out", settings.per_problem, learners)
        groups = self.grader.grade(written).groups
        told = policy_figures(groups, self.reader)
        prm = learners.get("prm")
        if prm is None:
            return told
        return told | ranking_figures(groups, self.reader, self._step_scores(groups, prm))

    def items(self, count: int, learners: Learners) -> list[Item]:
        """See `Bench.items`: the policy's own."""
        own = self._write(held_out_problems(self.job, count), "golden", 1, learners)
        found = []
        for (rollout,) in self.ranks.gather(own):
            spans = self.reader.step_spans(rollout.text)
            if spans:
                separator = self.reader.separator
                steps = [rollout.text[start:end].removesuffix(separator) for start, end in spans]
                found.append((rollout.problem.text, steps))
        return found

    def _step_scores(
        self, groups: Sequence[Group], prm: Learner[Any]
    ) -> Sequence[Sequence[Sequence[float]]]:
        if not isinstance(prm.model, TrainedHead) and not isinstance(self.job.algorithm, StepBce):
            return step_rewards(groups, self.reader, self.tokenizer, prm.model, self.reference)
        assert self.prm is not None
        rollouts = [rollout for group in groups for rollout in group]
        scores = iter(self.prm.raw([trajectory_of(rollout, self.reader) for rollout in rollouts]))
        return [[next(scores) for _ in group] for group in groups]

    def _write(
        self, problems: Sequence[Problem], seed: str, per_problem: int, learners: Learners
    ) -> list[list[Written]]:
        policy = learners.get("policy")
        return self.writer.write(
            problems,
            seed=seed,
            policy_step=policy.steps if policy is not None else 0,
            per_problem=per_problem,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledBench:
    """A PRM on labelled responses."""

    prm: TrainedPrm
    trained_on: LabelledSteps
    held_out: LabelledSteps | None

    def evaluate(self, settings: Evaluation, learners: Learners) -> dict[str, float]:
        """See `Bench.evaluate`: all held-out responses, whatever the settings' sizes."""
        if self.held_out is None:
            return {}
        judged = self.held_out.judged
        told = step_figures(judged, self.prm.raw_of([item.encoded for item in judged]))
        return {name.removeprefix("prm_"): value for name, value in told.items()}

    def items(self, count: int, learners: Learners) -> list[Item]:
        """See `Bench.items`: the first responses of the files."""
        return list(self.trained_on.texts(count))
