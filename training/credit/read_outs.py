"""How rePIRL's PRM says its reward of a token: as a log-ratio, or by a head over actions."""

from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from training.algorithms.repirl import head_rewards, log_ratio_rewards
from training.data import Example
from training.heads import TrainedHead
from training.learner import Learner
from training.models import response_mask


class ReadOut(Protocol):
    """A PRM and its read-out. The rewards' gradient is that of the values, token by token."""

    @property
    def learner(self) -> Learner[Any]:
        """What trains."""
        ...

    def values(self, examples: Sequence[Example]) -> Float[Tensor, "rows time"]:
        """What the model says of each response token, with gradients."""
        ...

    def rewards(
        self,
        values: Float[Tensor, "rows time"],
        reference_logprobs: Float[Tensor, "rows time"] | None,
        mask: Bool[Tensor, "rows time"],
    ) -> Float[Tensor, "rows time"]:
        """The token rewards, 0 outside the mask."""
        ...


class LogRatios:
    """r_t = log π_φ − log π_ref."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def values(self, examples: Sequence[Example]) -> Float[Tensor, "rows time"]:
        """See `ReadOut.values`: log-probs."""
        return self.learner.model.logprobs(examples)

    def rewards(
        self,
        values: Float[Tensor, "rows time"],
        reference_logprobs: Float[Tensor, "rows time"] | None,
        mask: Bool[Tensor, "rows time"],
    ) -> Float[Tensor, "rows time"]:
        """See `ReadOut.rewards`."""
        assert reference_logprobs is not None, "a log-ratio has a reference"
        return log_ratio_rewards(values, reference_logprobs, mask)


class ActionHead:
    """r_t = tanh((W·h_{t−1} + b)[a_t])."""

    def __init__(self, learner: Learner[TrainedHead]) -> None:
        self.learner = learner

    def values(self, examples: Sequence[Example]) -> Float[Tensor, "rows time"]:
        """See `ReadOut.values`: the rewards themselves."""
        outputs = self.learner.model.actions(examples)
        return head_rewards(outputs, response_mask(examples, outputs.device))

    def rewards(
        self,
        values: Float[Tensor, "rows time"],
        reference_logprobs: Float[Tensor, "rows time"] | None,
        mask: Bool[Tensor, "rows time"],
    ) -> Float[Tensor, "rows time"]:
        """See `ReadOut.rewards`."""
        return values.masked_fill(~mask, 0.0)
