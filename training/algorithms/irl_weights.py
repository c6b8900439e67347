"""Importance weights of failed rollouts, which stand for the partition function in rePIRL.

With z(x) = Σ_τ exp R(τ) = E_π[exp(R)/π], a sample of the policy weighs w = exp(R)/π (arXiv
2602.07832 Eq. 3 and 4). The variants are for long responses, where −log π spreads over tens of
nats and the softmax becomes one-hot; watch the effective size.

    none         log w = 0
    importance   R − log π
    tempered     α·(R − log π)
    length       (R − log π)/tokens
    clipped      R − log π, centred in the pool, clipped to ±c
    reference    R + log π_ref − log π    (base measure π_ref: bounded by drift, not by length)
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.groups import group_sums
from training.settings.repirl import Repirl


def log_weights(
    reward_sums: Float[Tensor, "rows"],
    lengths: Int[Tensor, "rows"],
    logprobs: Float[Tensor, "rows"],
    reference_logprobs: Float[Tensor, "rows"] | None,
    pool: Bool[Tensor, "rows"],
    group: Int[Tensor, "rows"],
    settings: Repirl,
) -> Float[Tensor, "rows"]:
    """log w of every row, by the settings' `weights`; R keeps its gradient."""
    log_w = reward_sums - logprobs
    match settings.weights:
        case "none":
            # Without 1/π the likelihood still has its exp(R).
            return reward_sums if settings.prm_loss == "mle" else torch.zeros_like(log_w)
        case "importance":
            return log_w
        case "tempered":
            assert settings.temper is not None
            return settings.temper * log_w
        case "length":
            return log_w / lengths.clamp(min=1)
        case "clipped":
            assert settings.weight_clip is not None
            inside = pool.to(log_w.dtype)
            count = group_sums(inside, group).clamp(min=1)
            centre = group_sums(log_w * inside, group) / count
            return (log_w - centre[group]).clamp(-settings.weight_clip, settings.weight_clip)
        case "reference":
            assert reference_logprobs is not None, "weights over the reference need its log-probs"
            return log_w + reference_logprobs


def normalised_weights(
    log_w: Float[Tensor, "rows"], pool: Bool[Tensor, "rows"], group: Int[Tensor, "rows"]
) -> Float[Tensor, "rows"]:
    """w̃: the softmax over each group's pool, detached; 0 outside of it."""
    log_w = log_w.detach()
    total = group_logsumexp(log_w, pool, group)
    return torch.where(pool, log_w - total[group], -torch.inf).exp()


def group_logsumexp(
    values: Float[Tensor, "rows"], pool: Bool[Tensor, "rows"], group: Int[Tensor, "rows"]
) -> Float[Tensor, "groups"]:
    """log Σ exp over each group's pool, with gradient; 0 where the pool is empty."""
    inside = values.masked_fill(~pool, -torch.inf)
    count = int(group.max()) + 1 if len(group) else 0
    most = values.new_full((count,), -torch.inf).scatter_reduce(0, group, inside.detach(), "amax")
    most = most.masked_fill(most.isinf(), 0.0)
    sums = group_sums(torch.where(pool, values - most[group], -torch.inf).exp(), group)
    return torch.where(sums > 0, sums.clamp(min=1e-30).log() + most, 0.0)


def effective_sizes(
    weights: Float[Tensor, "rows"], pool: Bool[Tensor, "rows"], group: Int[Tensor, "rows"]
) -> Float[Tensor, "groups"]:
    """1/(|F|·Σ w̃²): 1 where all weigh the same, 1/|F| where one has everything; 0 without any."""
    squares = group_sums(weights.square(), group)
    count = group_sums(pool.to(weights.dtype), group)
    return torch.where(squares > 0, 1 / (squares * count).clamp(min=1e-30), 0.0)


def self_consistent_log_z(
    logits: Float[Tensor, "rows"],
    mass: Float[Tensor, "rows"],
    group: Int[Tensor, "rows"],
    *,
    iterations: int = 60,
) -> Float[Tensor, "groups"]:
    """log z of each group with Σ mass·σ(logit − log z) = 1, detached.

    `mass` is 1/|E| on experts and 1/|F| on the policy's. Only with this z is the discriminator's
    gradient that of the likelihood under samples of the mixture (Finn et al., arXiv 1611.03852; the
    paper's Proposition 3 leaves it out). Bisection: the sum falls from Σ mass = 2 to 0.
    """
    logits = logits.detach()
    count = int(group.max()) + 1 if len(group) else 0
    low = logits.new_full((count,), torch.inf).scatter_reduce(0, group, logits, "amin") - 50
    high = logits.new_full((count,), -torch.inf).scatter_reduce(0, group, logits, "amax") + 50
    low, high = low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)
    for _ in range(iterations):
        middle = (low + high) / 2
        is_low = group_sums(mass * torch.sigmoid(logits - middle[group]), group) > 1
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return (low + high) / 2
