"""What a run is measured on, beside its steps: held-out problems, or labelled responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prm.chat import ChatTokenizer
from training.credit.base import frozen_logprobs
from training.credit.implicit import outcome_figures
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
from training.labelled_outcomes import LabelledOutcomes, by_problem
from training.labelled_steps import LabelledSteps, judged_of
from training.learner import Learner
from training.models import TrainedLM
from training.problems import held_out_problems
from training.ranks import Ranks
from training.rollout_batch import Group, RolloutBatch, Written
from training.settings import ImplicitPrm, StepBce
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

    def labelled(self, settings: Evaluation, learners: Learners) -> list[dict[str, Any]]:
        """What was written for the last evaluation, with its labels; none where files hold them."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class RolloutBench:
    """The policy on held-out problems, the same every time, and the PRM where one trains.

    `last` is what the policy wrote for the last evaluation.
    """

    job: TrainingJob
    tokenizer: ChatTokenizer
    writer: Writer
    grader: Grader
    reader: ResponseReader
    reference: TrainedLM | None
    prm: TrainedPrm | None
    ranks: Ranks
    last: Sequence[Group] | None = None

    def evaluate(self, settings: Evaluation, learners: Learners) -> dict[str, float]:
        """See `Bench.evaluate`."""
        groups = self.last = self._held_out(settings, learners)
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
            if steps := self._steps(rollout):
                found.append((rollout.problem.text, steps))
        return found

    def labelled(self, settings: Evaluation, learners: Learners) -> list[dict[str, Any]]:
        """See `Bench.labelled`. A response without a step has nothing to score, and is left out."""
        # A run that goes on behind its last step has not evaluated: it writes the same again.
        groups = self.last if self.last is not None else self._held_out(settings, learners)
        rollouts = [rollout for group in groups for rollout in group]
        return [line for rollout in rollouts if (line := self._line(rollout)) is not None]

    def _line(self, rollout: Written) -> dict[str, Any] | None:
        steps = self._steps(rollout)
        if not steps:
            return None
        problem, find = rollout.problem, self.reader.first_error
        line = {"problem": problem.text, "steps": steps, "correct": rollout.reward >= 1}
        return line if find is None else line | {"first_error": find(problem, rollout.text)}

    def _steps(self, rollout: Written) -> list[str]:
        spans = self.reader.step_spans(rollout.text)
        separator = self.reader.separator
        return [rollout.text[start:end].removesuffix(separator) for start, end in spans]

    def _held_out(self, settings: Evaluation, learners: Learners) -> Sequence[Group]:
        problems = held_out_problems(self.job, settings.problems)
        written = self._write(problems, "held-out", settings.per_problem, learners)
        return self.grader.grade(written).groups

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
        return self.trained_on.texts(count)

    def labelled(self, settings: Evaluation, learners: Learners) -> list[dict[str, Any]]:
        """See `Bench.labelled`."""
        return []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutcomeBench:
    """An implicit PRM on responses whose outcome is known."""

    settings: ImplicitPrm
    reference: TrainedLM
    prm: TrainedPrm
    trained_on: LabelledOutcomes
    held_out: LabelledOutcomes | None

    def evaluate(self, settings: Evaluation, learners: Learners) -> dict[str, float]:
        """See `Bench.evaluate`: all held-out responses, whatever the settings' sizes."""
        if self.held_out is None:
            return {}
        learner = learners["prm"]
        batch = RolloutBatch.of(by_problem(self.held_out.rollouts), learner.model.model.device)
        ours, theirs = (
            frozen_logprobs(model, batch, learner.settings.micro_tokens)
            for model in (learner.model, self.reference)
        )
        told = outcome_figures(batch, ours - theirs, self.settings.beta)
        return told | self._first_errors(self.held_out)

    def _first_errors(self, held_out: LabelledOutcomes) -> dict[str, float]:
        """How well first errors are found, where the labels tell them."""
        judged = [judged_of(response) for response in held_out.responses]
        judged = [item for item in judged if item.knows_first_error]
        if not judged:
            return {}
        figures = step_figures(judged, self.prm.raw_of([item.encoded for item in judged]))
        return {"first_error_f1": figures["prm_first_error_f1"]}

    def items(self, count: int, learners: Learners) -> list[Item]:
        """See `Bench.items`: the first responses of the files."""
        return self.trained_on.texts(count)

    def labelled(self, settings: Evaluation, learners: Learners) -> list[dict[str, Any]]:
        """See `Bench.labelled`."""
        return []
