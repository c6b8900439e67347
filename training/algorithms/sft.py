"""Supervised fine-tuning: the mean negative log-likelihood of the response tokens.

The prompt carries no loss, the end token does: a model that is never taught to stop writes until
its limit.
"""

from jaxtyping import Bool, Float
from torch import Tensor


def sft_loss(
    logprobs: Float[Tensor, "rows time"],
    is_target: Bool[Tensor, "rows time"],
    *,
    total: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean over all response tokens of the batch, so that a long response counts as more.

    `total` is the number of tokens of the whole batch where these rows are a part of it: the parts'
    losses are then summed. By default they are all of it.
    """
    return -logprobs[is_target].sum() / (is_target.sum() if total is None else total)
