"""Who gets the credit: from a batch of graded rollouts to what each token weighs in the loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.data import Example
from training.learner import Learner
from training.models import TrainedLM
from training.ranks import Ranks
from training.rollout_batch import RolloutBatch, own_pieces

# What a model says of each response token of some examples, with gradients: log-probs, or rewards.
TokenValues = Callable[[Sequence[Example]], Float[Tensor, "rows time"]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signal:
    """What the policy's loss takes: constants, 0 outside the batch's mask.

    `weights` sum to 1 over the batch, or less (λ-GRPO). `token_rewards` are the PRM's before it saw
    the batch. `reference_logprobs`, at temperature 1, where they are at hand. `metrics` are for the
    events.
    """

    advantages: Float[Tensor, "rows time"]
    weights: Float[Tensor, "rows time"]
    token_rewards: Float[Tensor, "rows time"] | None = None
    reference_logprobs: Float[Tensor, "rows time"] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Credit(Protocol):
    """Assigns credit, and trains whatever it needs for that.

    `old_logprobs` are the policy's own, at the temperature that was sampled at.
    """

    @property
    def prm(self) -> Learner[Any] | None:
        """The PRM that trains beside the policy, where there is one."""
        ...

    def assign(self, batch: RolloutBatch, old_logprobs: Float[Tensor, "rows time"]) -> Signal:
        """See `Signal`."""
        ...


def frozen_logprobs(
    model: TrainedLM, batch: RolloutBatch, micro_tokens: int, *, temperature: float = 1.0
) -> Float[Tensor, "rows time"]:
    """Log-probs of a batch's responses under a model as it is, a piece of the batch at a time."""
    return frozen_values(
        lambda some: model.logprobs(some, temperature=temperature),
        batch,
        micro_tokens,
        model.ranks,
    )


@torch.no_grad()
def frozen_values(
    values_of: TokenValues, batch: RolloutBatch, micro_tokens: int, ranks: Ranks
) -> Float[Tensor, "rows time"]:
    """A batch's values without gradients, a piece of it at a time; on each rank all of them."""
    found = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for rows, part in value_parts(values_of, batch, micro_tokens, ranks):
        found[rows, : part.shape[1]] = part
    return ranks.sum(found)


def value_parts(
    values_of: TokenValues, batch: RolloutBatch, micro_tokens: int, ranks: Ranks
) -> Iterator[tuple[Int[Tensor, "some"], Float[Tensor, "some time"]]]:
    """This rank's values of a batch in parts of about so many tokens, and whose rows they are."""
    examples = batch.examples
    for rows in own_pieces(ranks, examples, range(len(examples)), micro_tokens):
        part = values_of([examples[row] for row in rows])
        yield torch.tensor(rows, device=part.device, dtype=torch.long), part


def surrogate_losses(
    values_of: TokenValues,
    batch: RolloutBatch,
    gradients: Float[Tensor, "rows"],
    micro_tokens: int,
    ranks: Ranks,
) -> Iterator[Float[Tensor, ""]]:
    """What has the gradient of a loss of each row's summed values; see `training.coupled`."""
    for rows, part in value_parts(values_of, batch, micro_tokens, ranks):
        yield (gradients[rows] * part.sum(1)).sum()
