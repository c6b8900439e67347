"""Per-token estimators of KL(π‖π_ref) from sampled tokens, J. Schulman, "Approximating KL
Divergence" (2020).

With d = log π − log π_ref of the sampled token: k1 = d is unbiased and may be negative; k2 = d²/2;
k3 = e^{−d} + d − 1 is unbiased and never negative. As a loss, differentiated, they are another
matter: on policy k1's gradient is 0 in expectation, k2's is that of the KL, k3's has the
coefficient 1 − e^{−d}, which is bounded for one sign of d only (PRL v2, arXiv 2601.10201v2 §B.1).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.advantages import suffix_sums
from training.settings.base import KLEstimator

# e^20 in float32 is finite, and so is its square; beyond, the estimate says nothing anyway.
LARGEST = 20.0


def token_kl(
    logprobs: Float[Tensor, "rows time"],
    reference_logprobs: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    estimator: KLEstimator,
) -> Float[Tensor, "rows time"]:
    """The estimate at each token, with its gradient; 0 outside the mask."""
    delta = (logprobs - reference_logprobs).masked_fill(~mask, 0.0)
    if estimator == "k1":
        return delta
    if estimator == "k2":
        return delta.square() / 2
    return torch.exp((-delta).clamp(max=LARGEST)) + delta - 1


def kl_to_go(
    logprobs: Float[Tensor, "rows time"],
    reference_logprobs: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    estimator: KLEstimator = "k1",
) -> Float[Tensor, "rows time"]:
    """The weight of ∇ log π(a_t) in the gradient of the sequence's KL, detached.

    reg_i = Σ_{j≥i} f(u_j) − f′(u_i)·u_i up to constants, u = π_ref/π (PRL v2 Eq. 4.4 to 4.6):
    for k1 the suffix sum of d, for k3 d_i + Σ_{j>i} k3_j.
    """
    delta = token_kl(logprobs, reference_logprobs, mask, "k1").detach()
    if estimator == "k1":
        return suffix_sums(delta, mask)
    assert estimator == "k3", f"no weight was derived for {estimator}"
    kl = token_kl(logprobs, reference_logprobs, mask, "k3").detach()
    return delta + suffix_sums(kl, mask) - kl
