"""rePIRL's credit: a PRM by inverse RL from demonstrations and failures, which rewards tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.algorithms.irl_loss import IrlBatch, irl_loss
from training.algorithms.prime import pair_accuracy
from training.algorithms.repirl import pools, repirl_advantages
from training.coupled import score_gradients
from training.credit.base import Signal, frozen_logprobs, frozen_values, surrogate_losses
from training.credit.read_outs import ReadOut
from training.learner import Learner
from training.models import TrainedLM
from training.ranks import Ranks
from training.rollout_batch import Group, RolloutBatch, Written
from training.settings import Repirl
from training.weighting import token_weights

# Demonstrations of a group's problem, graded, with the log-probs 0: nobody sampled them.
Demonstrate = Callable[[Sequence[Group]], Sequence[Group]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IrlTaught:
    """Of the rollouts, not of the demonstrations: the PRM's rewards before its step, and log-probs
    under the reference, where there is one."""

    token_rewards: Float[Tensor, "rows time"]
    reference_logprobs: Float[Tensor, "rows time"] | None
    metrics: dict[str, float]


class IrlTeacher:
    """One optimizer step of φ per batch: experts up, the policy's failures down."""

    def __init__(
        self,
        settings: Repirl,
        read_out: ReadOut,
        policy: TrainedLM,
        reference: TrainedLM | None,
        demonstrate: Demonstrate,
    ) -> None:
        self.learner: Learner[Any] = read_out.learner
        self._read_out = read_out
        self._settings = settings
        self._policy = policy
        self._reference = reference
        self._demonstrate = demonstrate
        self._micro = self.learner.settings.micro_tokens
        self._ranks: Ranks = self.learner.model.ranks

    def teach(self, groups: Sequence[Group], device: torch.device | str) -> IrlTaught:
        """Minimise the loss on these groups and their demonstrations once. Raises Diverged."""
        shown = self._demonstrate(groups)
        both = [[*group, *demos] for group, demos in zip(groups, shown, strict=True)]
        batch = RolloutBatch.of(both, device)
        is_shown = torch.tensor(
            [place >= len(group) for group, all_ in zip(groups, both, strict=True)
             for place in range(len(all_))],
            device=device,
        )  # fmt: skip
        reference = None
        if self._reference is not None:
            reference = frozen_logprobs(self._reference, batch, self._micro)
        before = frozen_values(self._read_out.values, batch, self._micro, self._ranks)
        irl = self._irl_batch(batch, is_shown, reference)
        rewards = self._read_out.rewards(before, reference, batch.mask)
        sums = rewards.sum(1)
        told = dict[str, float]()

        def loss_of(scores: Tensor) -> Tensor:
            found = irl_loss(scores, irl, self._settings)
            told.update({name: float(value) for name, value in found.metrics.items()})
            return found.loss

        loss, gradients = score_gradients(loss_of, sums)
        step = self.learner.step(
            surrogate_losses(self._read_out.values, batch, gradients, self._micro, self._ranks)
        )
        own = ~is_shown
        accuracy = pair_accuracy(sums[own], batch.rewards[own], batch.group[own])
        return IrlTaught(
            token_rewards=rewards[own],
            reference_logprobs=None if reference is None else reference[own],
            metrics={
                "prm_loss": float(loss),
                "prm_grad_norm": step["grad_norm"],
                "prm_lr": step["lr"],
                "prm_pair_accuracy": float(accuracy),
                **{f"prm_{name}": value for name, value in told.items()},
            },
        )

    @torch.no_grad()
    def rewards(
        self, batch: RolloutBatch, reference: Float[Tensor, "rows time"] | None
    ) -> Float[Tensor, "rows time"]:
        """The token rewards of these rollouts as the PRM is now."""
        values = frozen_values(self._read_out.values, batch, self._micro, self._ranks)
        return self._read_out.rewards(values, reference, batch.mask)

    def _irl_batch(
        self, batch: RolloutBatch, is_shown: Bool[Tensor, "rows"], reference: Tensor | None
    ) -> IrlBatch:
        experts, failed = pools(batch.rewards, is_shown, self._settings)
        ours = frozen_logprobs(self._policy, batch, self._micro)
        return IrlBatch(
            group=batch.group,
            lengths=batch.mask.sum(1),
            is_expert=experts,
            is_failed=failed,
            logprobs=ours.masked_fill(~batch.mask, 0.0).sum(1),
            reference_logprobs=None
            if reference is None
            else reference.masked_fill(~batch.mask, 0.0).sum(1),
        )


class RepirlCredit:
    """See `Credit`."""

    def __init__(self, settings: Repirl, teacher: IrlTeacher) -> None:
        self.prm = teacher.learner
        self._settings = settings
        self._teacher = teacher

    def assign(self, batch: RolloutBatch, old_logprobs: Float[Tensor, "rows time"]) -> Signal:
        """See `Credit.assign`. Tokens are rewarded by the PRM after its step (Algorithm 1)."""
        settings = self._settings
        taught = self._teacher.teach(_groups(batch), batch.mask.device)
        reference = taught.reference_logprobs
        if reference is not None:
            # Demonstrations may be longer than every rollout.
            reference = reference[:, : batch.mask.shape[1]]
        rewards = self._teacher.rewards(batch, reference)
        return Signal(
            advantages=repirl_advantages(rewards, batch.rewards, batch.mask, batch.group, settings),
            weights=token_weights(batch.mask, batch.group, settings.normaliser),
            token_rewards=taught.token_rewards,
            reference_logprobs=reference,
            metrics=taught.metrics,
        )


def _groups(batch: RolloutBatch) -> list[Group]:
    found: dict[int, list[Written]] = {}
    for rollout, number in zip(batch.rollouts, batch.group.tolist(), strict=True):
        found.setdefault(number, []).append(rollout)
    return list(found.values())
