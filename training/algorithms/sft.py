"""Supervised fine-tuning: the mean negative log-likelihood of the response tokens.

The prompt carries no loss, the end token does: a model that is never taught to stop writes until
its limit.
"""

from jaxtyping import Bool, Float
from torch import Tensor


def sft_loss(
    logprobs: Float[Tensor, "batch time"], is_target: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Mean over all response tokens of the batch, so that a long response counts as more."""
    return -logprobs[is_target].mean()
