"""The implicit PRM, trained by cross-entropy on outcome labels.

With the reward of a response parameterised as r = β · Σ_t (log π_φ − log π_ref), a classifier of
right and wrong responses learns step rewards that nobody labelled. "Free Process Rewards without
Process Labels", arXiv 2412.01981, §3 and Eq. 5. Two things where text and the authors' code
(PRIME-RL/ImplicitPRM, `ce_trainer.py`) differ, and the code is followed: the printed loss lacks its
minus sign, and the log-ratio is summed over the response, not divided by its length.
"""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def sequence_log_ratio(
    logprobs: Float[Tensor, "batch time"],
    is_target: Bool[Tensor, "batch time"],
    reference_logprobs: Float[Tensor, "batch"],
) -> Float[Tensor, "batch"]:
    """s = Σ_t log π_φ − Σ_t log π_ref over the response tokens, the end token among them.

    Of the reference, which is frozen, the sum is all that training needs: it is computed once.
    """
    return (logprobs * is_target).sum(dim=-1) - reference_logprobs


def implicit_prm_loss(
    log_ratio: Float[Tensor, "batch"], labels: Float[Tensor, "batch"], *, beta: float
) -> Float[Tensor, ""]:
    """−[l·log σ(βs) + (1−l)·log(1−σ(βs))], mean over responses; labels lie in [0, 1].

    ln 2 where φ is still the reference; the gradient by each token's log-prob is β(σ(βs)−l)/batch.
    """
    return binary_cross_entropy_with_logits(beta * log_ratio, labels)
