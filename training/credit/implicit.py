"""An implicit PRM learns from a batch of graded rollouts: online for PRIME, and in offline jobs.

Every response's loss is multiplied by its weight, which is 1 of rollouts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prm.evaluation.ranking import auroc
from training.algorithms.implicit_prm import (
    ce_losses,
    dpo_losses,
    kto_losses,
    kto_reference_point,
    nca_losses,
    pairs_of,
)
from training.algorithms.prime import pair_accuracy
from training.coupled import score_gradients
from training.credit.base import frozen_logprobs, surrogate_losses, value_parts
from training.learner import Learner
from training.models import TrainedLM
from training.rollout_batch import RolloutBatch
from training.settings import ImplicitPrm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taught:
    """`logprobs` are the PRM's before it was trained on this batch, if it was."""

    logprobs: Float[Tensor, "rows time"]
    metrics: dict[str, float]


class ImplicitTeacher:
    """One optimizer step of φ per batch. `reference` is what KTO's reference point asks for."""

    def __init__(
        self, settings: ImplicitPrm, learner: Learner, reference: TrainedLM | None
    ) -> None:
        self.learner = learner
        self._settings = settings
        self._reference = reference
        self._micro = learner.settings.micro_tokens
        self._ranks = learner.model.ranks

    def teach(self, batch: RolloutBatch, divisor: Float[Tensor, "rows time"]) -> Taught:
        """Minimise the loss on this batch once; `divisor` are log-probs under the reference.

        Raises Diverged.
        """
        if self._settings.loss == "ce":
            # The training forward is the scoring forward: a batch is read once.
            before = torch.zeros_like(divisor)
            metrics = self.learner.step(self._cross_entropy(batch, divisor, before))
            before = self._ranks.sum(before)
        else:
            before = frozen_logprobs(self.learner.model, batch, self._micro)
            loss, gradients = score_gradients(
                lambda sums: self._coupled(batch, sums), _sums(before, divisor, batch)
            )
            metrics = self.learner.step(
                surrogate_losses(
                    self.learner.model.logprobs, batch, gradients, self._micro, self._ranks
                )
            )
            metrics["loss"] = float(loss)
        told = {f"prm_{name}": value for name, value in metrics.items()}
        return Taught(logprobs=before, metrics=told | _what_it_knew(before, divisor, batch))

    def read(self, batch: RolloutBatch, divisor: Float[Tensor, "rows time"]) -> Taught:
        """Score, and learn nothing."""
        found = frozen_logprobs(self.learner.model, batch, self._micro)
        return Taught(logprobs=found, metrics=_what_it_knew(found, divisor, batch))

    def _cross_entropy(
        self,
        batch: RolloutBatch,
        divisor: Float[Tensor, "rows time"],
        before: Float[Tensor, "rows time"],
    ) -> Iterator[Float[Tensor, ""]]:
        """The loss in parts; the log-probs on the way go to `before`."""
        parts = value_parts(self.learner.model.logprobs, batch, self._micro, self._ranks)
        for rows, part in parts:
            width = part.shape[1]
            before[rows, :width] = part.detach()
            ratio = (part - divisor[rows, :width]).masked_fill(~batch.mask[rows, :width], 0.0)
            losses = ce_losses(ratio.sum(1), batch.rewards[rows], beta=self._settings.beta)
            yield (losses * batch.weights[rows]).sum() / len(batch.rollouts)

    def _coupled(self, batch: RolloutBatch, sums: Float[Tensor, "rows"]) -> Float[Tensor, ""]:
        """DPO, NCA and KTO: the mean over all pairs, or responses, of the batch."""
        settings = self._settings
        if settings.loss == "kto":
            z = kto_reference_point(self._mismatched(batch))
            return (kto_losses(sums, batch.rewards, z, settings) * batch.weights).mean()
        pairs = pairs_of(batch.rewards.tolist(), batch.group.tolist(), settings.pairing)
        if not len(pairs):
            return sums.sum() * 0.0
        losses = dpo_losses if settings.loss == "dpo" else nca_losses
        return losses(sums[pairs[:, 0]], sums[pairs[:, 1]], beta=settings.beta).mean()

    def _mismatched(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """Log-ratios of every response behind the next row's problem."""
        assert self._reference is not None
        examples = batch.examples
        turned = [
            replace(
                own,
                example=replace(
                    own.example,
                    ids=(*other.ids[: other.first], *own.example.ids[own.example.first :]),
                    first=other.first,
                ),
            )
            for own, other in zip(batch.rollouts, examples[1:] + examples[:1], strict=True)
        ]
        beside = RolloutBatch.of([turned], batch.mask.device)
        ours = frozen_logprobs(self.learner.model, beside, self._micro)
        return _sums(ours, frozen_logprobs(self._reference, beside, self._micro), beside)


def outcome_figures(
    batch: RolloutBatch, log_ratio: Float[Tensor, "rows time"], beta: float
) -> dict[str, float]:
    """How a PRM judges whole responses: by β · Σ log-ratio, weighted as the responses are.

    Area under the curve and pairs are told where there is something to tell apart. A share counts
    as right at 1.
    """
    sums = (log_ratio * batch.mask).sum(1)
    losses = ce_losses(sums, batch.rewards, beta=beta) * batch.weights
    told = {
        "cross_entropy": float(losses.sum() / batch.weights.sum()),
        "accuracy": float(((sums > 0) == (batch.rewards > 0.5)).float().mean()),
    }
    area = auroc(
        sums.double().cpu().numpy(),
        (batch.rewards >= 1).double().cpu().numpy(),
        batch.weights.double().cpu().numpy(),
    )
    pairs = _right_pairs(sums, batch)
    return (
        told
        | ({} if math.isnan(area) else {"auroc": area})
        | ({} if pairs is None else {"pair_accuracy": pairs})
    )


def _right_pairs(sums: Float[Tensor, "rows"], batch: RolloutBatch) -> float | None:
    """`pair_accuracy`, problem by problem: a table of all rows might not fit. None: no pair."""
    found, total = 0.0, 0.0
    for rows in _rows_by_group(batch.group):
        rewards = batch.rewards[rows]
        weight = float((rewards[:, None] - rewards[None, :]).clamp(min=0).sum())
        found += weight * float(pair_accuracy(sums[rows], rewards, batch.group[rows]))
        total += weight
    return found / total if total else None


def _rows_by_group(group: Int[Tensor, "rows"]) -> Sequence[Tensor]:
    order = group.argsort(stable=True)
    return torch.split(order, torch.bincount(group).tolist())


def _what_it_knew(
    logprobs: Float[Tensor, "rows time"],
    divisor: Float[Tensor, "rows time"],
    batch: RolloutBatch,
) -> dict[str, float]:
    """How a PRM that has not seen these rollouts judges them."""
    sums = _sums(logprobs, divisor, batch)
    return {
        "prm_pair_accuracy": float(pair_accuracy(sums, batch.rewards, batch.group)),
        "prm_accuracy": float(((sums > 0) == (batch.rewards > 0.5)).float().mean()),
    }


def _sums(
    logprobs: Float[Tensor, "rows time"],
    divisor: Float[Tensor, "rows time"],
    batch: RolloutBatch,
) -> Float[Tensor, "rows"]:
    return (logprobs - divisor).masked_fill(~batch.mask, 0.0).sum(1)
