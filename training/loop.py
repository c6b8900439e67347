"""Online reinforcement learning, read from top to bottom.

    problems → rollouts in groups → outcome rewards → groups that teach something → credit for every
    token (process rewards, advantages; a PRM that trains beside it) → the policy's loss → one
    optimizer step or several → events → from time to time an evaluation and a checkpoint

What an algorithm is lies in its credit (`training/credit`) and in the settings of its loss.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.credit.base import Credit, Signal, frozen_logprobs
from training.events import Events
from training.grades import Graded, Grader
from training.groups import is_flat, is_within
from training.learner import Learner
from training.losses import LossPart, averages, policy_loss
from training.models import TrainedLM
from training.problems import ProblemSource
from training.rollout_batch import Group, RolloutBatch, own_pieces
from training.settings import PolicySettings, Prime, Repirl
from training.spec import TrainingJob
from training.telling import PrmJudge, reference_kl
from training.weighting import sampler_agreement, truncated_importance
from training.writers import Writer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnlineTraining:
    """Everything that a step needs. `step` is one; the run around it is `training/run.py`."""

    job: TrainingJob
    problems: ProblemSource
    writer: Writer
    grader: Grader
    credit: Credit
    policy: Learner
    reference: TrainedLM | None
    judge: PrmJudge
    events: Events

    @property
    def learners(self) -> dict[str, Learner[Any]]:
        """What trains."""
        prm = self.credit.prm
        return {"policy": self.policy} | ({} if prm is None else {"prm": prm})

    def step(self, number: int) -> dict[str, float]:
        """Step `number` (from 1): all of the above once. Raises Diverged."""
        told: dict[str, float] = {}
        groups = self._groups_worth_learning_from(number, told)
        if not groups:
            return told | {"tokens": 0.0}
        batch = RolloutBatch.of(groups, self.policy.model.model.device)
        with self.events.phase("old_logprobs"):
            old = self._old_logprobs(batch)
        told |= self._off_policy(batch, old)
        with self.events.phase("credit"):
            signal = self.credit.assign(batch, old)
        told |= self.judge.numbers(batch, signal.token_rewards)
        reference = self._reference_logprobs(number, batch, signal)
        if reference is not None:
            told |= reference_kl(old, reference, batch.mask)
        signal = replace(signal, reference_logprobs=reference)
        with self.events.phase("update"):
            told |= self._update(number, batch, old, signal)
        tokens = float(batch.mask.sum())
        # Unbiased for the entropy of the distributions that the tokens were drawn from, where the
        # temperature is 1: the mean of −log p over what was drawn.
        entropy = -float(batch.sampler_logprobs.sum()) / tokens
        return told | dict(signal.metrics) | {"tokens": tokens, "entropy": entropy}

    def _groups_worth_learning_from(self, number: int, told: dict[str, float]) -> list[Group]:
        """Graded groups: as many as the job wants, or what the allowed draws give.

        Groups whose rewards are all equal, and those outside the algorithm's filter, are dropped
        and counted. A rollout that could not be graded is left out, never rewarded.
        """
        settings = self.job.rollouts
        kept: list[Group] = []
        seen = _Seen()
        for draw in range(settings.most_draws):
            with self.events.phase("rollouts"):
                written = self.writer.write(
                    self.problems.draw(number, draw),
                    seed=f"{self.job.seed}/{number}/{draw}",
                    policy_step=self.policy.steps,
                    per_problem=settings.per_problem,
                )
            with self.events.phase("grading"):
                graded = self.grader.grade(written)
            seen.add(graded)
            kept += [group for group in graded.groups if self._teaches(group, seen)]
            if len(kept) >= settings.problems:
                break
        told |= seen.numbers()
        return kept[: settings.problems]

    def _teaches(self, group: Group, seen: "_Seen") -> bool:
        algorithm = self.job.algorithm
        if len(group) < algorithm.least_group_size:
            seen.too_small += 1
            return False
        rewards = torch.tensor([rollout.reward for rollout in group])
        alone = torch.zeros(len(group), dtype=torch.long)
        if isinstance(algorithm, Prime | Repirl) and not is_within(
            rewards, alone, algorithm.filter
        ):
            seen.filtered += 1
            return False
        if not algorithm.keeps_flat_groups and bool(is_flat(rewards, alone)):
            seen.flat += 1
            return False
        return True

    def _old_logprobs(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """The policy's log-probs when it wrote: the sampler's own, where they are the trainer's."""
        heat = self.job.rollouts.temperature
        if self.writer.is_exact and heat == 1.0:
            return batch.sampler_logprobs
        micro = self.policy.settings.micro_tokens
        return frozen_logprobs(self.policy.model, batch, micro, temperature=heat)

    def _reference_logprobs(
        self, number: int, batch: RolloutBatch, signal: Signal
    ) -> Float[Tensor, "rows time"] | None:
        """Of the reference, at the temperature that was sampled at: where credit has them, the loss
        wants them, or the events do in this step."""
        heat, every = self.job.rollouts.temperature, self.job.reference_kl_every
        if signal.reference_logprobs is not None and heat == 1.0:
            return signal.reference_logprobs
        settings = self.job.algorithm
        assert isinstance(settings, PolicySettings)
        is_told = every is not None and number % every == 0
        if not settings.kl_coefficient and not is_told:
            return None
        assert self.reference is not None, "a job with a KL has a reference"
        with self.events.phase("reference"):
            micro = self.policy.settings.micro_tokens
            return frozen_logprobs(self.reference, batch, micro, temperature=heat)

    def _off_policy(self, batch: RolloutBatch, old: Float[Tensor, "rows time"]) -> dict[str, float]:
        """How far what wrote is from what trains: in optimizer steps, and in log-probs."""
        behind = [self.policy.steps - rollout.policy_step for rollout in batch.rollouts]
        told = {"staleness": sum(behind) / len(behind)}
        if self.writer.is_exact or self.job.rollouts.temperature != 1.0:
            return told
        settings = self.job.algorithm
        assert isinstance(settings, PolicySettings)
        return told | sampler_agreement(
            old, batch.sampler_logprobs, batch.mask, cap=settings.importance_cap
        )

    def _update(
        self,
        number: int,
        batch: RolloutBatch,
        old: Float[Tensor, "rows time"],
        signal: Signal,
    ) -> dict[str, float]:
        """One pass over the batch, in as many optimizer steps as the job has minibatches."""
        settings = self.job.algorithm
        assert isinstance(settings, PolicySettings)
        order = list(range(len(batch.rollouts)))
        count = min(self.policy.settings.minibatches, len(order))
        if count > 1:
            random.Random(f"{self.job.seed}/{number}/minibatches").shuffle(order)
        parts: list[LossPart] = []
        steps: list[dict[str, float]] = []
        for place in range(count):
            rows = order[place::count]
            # Weights sum to 1 over the batch: each minibatch is scaled up to a batch's worth.
            losses = self._losses(settings, rows, count, batch, old, signal, parts)
            steps.append(self.policy.step(losses))
        told = averages(parts, self.policy.model.ranks)
        return {f"policy_{name}": value for name, value in told.items()} | {
            "grad_norm": sum(step["grad_norm"] for step in steps) / count,
            "lr": steps[-1]["lr"],
        }

    def _losses(
        self,
        settings: PolicySettings,
        rows: Sequence[int],
        scale: float,
        batch: RolloutBatch,
        old: Float[Tensor, "rows time"],
        signal: Signal,
        parts: list[LossPart],
    ) -> Iterator[Float[Tensor, ""]]:
        """The policy's loss on this rank's rows of these, in parts of the micro-batch size."""
        examples, heat = batch.examples, self.job.rollouts.temperature
        corrects = settings.importance_cap > 0 and not self.writer.is_exact and heat == 1.0
        model = self.policy.model
        for some in own_pieces(model.ranks, examples, rows, self.policy.settings.micro_tokens):
            found = model.forward(
                [examples[row] for row in some],
                temperature=heat,
                with_entropies=settings.entropy_coefficient > 0,
            )
            own = torch.tensor(some, device=old.device, dtype=torch.long)
            of = _Piece(own, found.logprobs.shape[1])
            part = policy_loss(
                settings,
                found.logprobs,
                of(old),
                of(signal.advantages),
                of(signal.weights) * scale,
                of(batch.mask),
                reference_logprobs=of.maybe(signal.reference_logprobs)
                if settings.kl_coefficient
                else None,
                entropies=found.entropies,
                importance=truncated_importance(
                    of(old), of(batch.sampler_logprobs), of(batch.mask), cap=settings.importance_cap
                )
                if corrects
                else None,
            )
            parts.append(replace(part, loss=part.loss.detach()))
            yield part.loss


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some rows of a batch's tensors, as wide as their longest."""

    rows: Int[Tensor, "some"]
    width: int

    def __call__(self, values: Tensor) -> Tensor:
        return values[self.rows, : self.width]

    def maybe(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else self(values)


@dataclass(slots=True)
class _Seen:
    """What the groups of a step were, before and after they were chosen."""

    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    right: int = 0
    cut: int = 0
    groups: int = 0
    flat: int = 0
    filtered: int = 0
    too_small: int = 0
    errors: int = 0

    def add(self, graded: Graded) -> None:
        rollouts = [rollout for group in graded.groups for rollout in group]
        self.rewards += [rollout.reward for rollout in rollouts]
        self.lengths += [len(rollout.logprobs) for rollout in rollouts]
        self.right += sum(rollout.reward >= 1 for rollout in rollouts)
        self.cut += sum(rollout.is_cut for rollout in rollouts)
        self.groups += len(graded.groups)
        self.errors += graded.errors

    def numbers(self) -> dict[str, float]:
        count = max(1, len(self.rewards))
        return {
            "reward": sum(self.rewards) / count,
            "accuracy": self.right / count,
            "length": sum(self.lengths) / count,
            "cut": self.cut / count,
            "rollouts": float(len(self.rewards)),
            "groups": float(self.groups),
            "flat_groups": float(self.flat),
            "filtered_groups": float(self.filtered),
            "small_groups": float(self.too_small),
            "grading_errors": float(self.errors),
        }
