"""Who gets the credit: from a batch of graded rollouts to what each token weighs in the loss."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.learner import Learner
from training.models import TrainedLM
from training.rollout_batch import RolloutBatch, cut_by_tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signal:
    """What the policy's loss takes: constants, 0 outside the batch's mask.

    `weights` sum to 1 over the batch, or less (λ-GRPO). `reference_logprobs` where the loss has a
    KL term. `metrics` are for the events.
    """

    advantages: Float[Tensor, "rows time"]
    weights: Float[Tensor, "rows time"]
    reference_logprobs: Float[Tensor, "rows time"] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Credit(Protocol):
    """Assigns credit, and trains whatever it needs for that.

    `old_logprobs` are the policy's own, at the temperature that was sampled at.
    """

    @property
    def prm(self) -> Learner | None:
        """The PRM that trains beside the policy, where there is one."""
        ...

    def assign(self, batch: RolloutBatch, old_logprobs: Float[Tensor, "rows time"]) -> Signal:
        """See `Signal`."""
        ...


@torch.no_grad()
def frozen_logprobs(
    model: TrainedLM, batch: RolloutBatch, micro_tokens: int, *, temperature: float = 1.0
) -> Float[Tensor, "rows time"]:
    """Log-probs of a batch's responses under a model as it is, a piece of the batch at a time."""
    examples = batch.examples
    found = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for rows in cut_by_tokens(examples, range(len(examples)), micro_tokens):
        part = model.logprobs([examples[row] for row in rows], temperature=temperature)
        found[torch.tensor(rows, device=found.device), : part.shape[1]] = part
    return found


def logprob_parts(
    learner: Learner, batch: RolloutBatch
) -> Iterator[tuple[Int[Tensor, "some"], Float[Tensor, "some time"]]]:
    """A batch's log-probs with gradients, in parts of the learner's size, and of which rows."""
    examples = batch.examples
    micro = learner.settings.micro_tokens
    for rows in cut_by_tokens(examples, range(len(examples)), micro):
        part = learner.model.logprobs([examples[row] for row in rows])
        yield torch.tensor(rows, device=part.device), part


def surrogate_losses(
    learner: Learner, batch: RolloutBatch, gradients: Float[Tensor, "rows"]
) -> Iterator[Float[Tensor, ""]]:
    """What has the gradient of a loss of each row's summed log-prob; see `training.coupled`."""
    for rows, part in logprob_parts(learner, batch):
        yield (gradients[rows] * part.sum(1)).sum()
