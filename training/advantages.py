"""From rewards to advantages: baselines, suffix sums, whitening.

[rows, time]: one rollout a row, `mask` true on its response tokens, the end token among them. What
stands where the mask is false is never read, and is 0 in every result. All of it belongs to a whole
batch of rollouts: compute it once, before the batch is cut into micro-batches.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.groups import group_sizes, group_sums, require_pairs

Alone = Literal["zero", "released"]


def leave_one_out(
    rewards: Float[Tensor, "rows"], group: Int[Tensor, "rows"]
) -> Float[Tensor, "rows"]:
    """r_i − mean of the group's other rewards: RLOO, arXiv 2402.14740 §2.3.

    The same as (r_i − mean)·K/(K−1). Raises InvalidInput for a group of one.
    """
    require_pairs(group)
    others = (group_sizes(group) - 1)[group]
    return rewards - (group_sums(rewards, group)[group] - rewards) / others


def masked_means(
    values: Float[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows"]:
    """The mean over each row's tokens; 0 for a row without any."""
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def suffix_sums(
    values: Float[Tensor, "rows time"], mask: Bool[Tensor, "rows time"], *, discount: float = 1.0
) -> Float[Tensor, "rows time"]:
    """G_t = Σ_{s≥t} γ^{s−t} x_s: the return from each token on.

    With a discount by doubling: after step k, G_t holds the terms up to t + 2^k − 1.
    """
    sums = values.masked_fill(~mask, 0.0)
    if discount == 1.0:
        return sums.flip(1).cumsum(1).flip(1).masked_fill(~mask, 0.0)
    shift = 1
    while shift < sums.shape[1]:
        later = torch.zeros_like(sums)
        later[:, :-shift] = sums[:, shift:]
        sums = sums + discount**shift * later
        shift *= 2
    return sums.masked_fill(~mask, 0.0)


def whiten(
    values: Float[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows time"]:
    """Mean 0 and variance 1 over all tokens of the batch: (x − mean)·rsqrt(var + 1e-8).

    The variance is the unbiased one, as in verl's and PRIME's `masked_whiten`, on which no paper
    says a word.
    """
    count = mask.sum()
    values = values.masked_fill(~mask, 0.0)
    centred = (values - values.sum() / count.clamp(min=1)).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def scale_by_batch_max(
    rewards: Float[Tensor, "rows time"], mask: Bool[Tensor, "rows time"], *, floor: float = 1e-3
) -> Float[Tensor, "rows time"]:
    """Token rewards over the batch's largest |suffix sum| + 1e-6, so that returns lie in [−1, 1].

    PRIME's `prime_norm: batch_norm`, in its code and in no paper. Where that maximum is below
    `floor` the result is 0: before the PRM's first update its log-ratios are rounding noise, and
    dividing by their own maximum would blow them up to full scale.
    """
    rewards = rewards.masked_fill(~mask, 0.0)
    if not rewards.numel():
        return rewards
    largest = suffix_sums(rewards, mask).abs().max()
    return torch.where(largest < floor, 0.0, rewards / (largest + 1e-6))


def active_leave_one_out(
    returns: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
) -> Float[Tensor, "rows time"]:
    """G_{i,t} − mean of G_{k,t} over the group's other rollouts that are still going on at t.

    rePIRL's baseline (`irl_core_algos.py`). Where no other rollout has a token at t the baseline
    is 0: the tail of the longest one keeps its whole return, which favours length.
    """
    require_pairs(group)
    returns = returns.masked_fill(~mask, 0.0)
    others = group_sums(mask.to(returns.dtype), group)[group] - 1
    rest = group_sums(returns, group)[group] - returns
    baseline = torch.where(others > 0, rest / others.clamp(min=1), 0.0)
    return (returns - baseline).masked_fill(~mask, 0.0)


def active_standardised(
    returns: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    *,
    alone: Alone = "zero",
) -> Float[Tensor, "rows time"]:
    """`active_leave_one_out` over the unbiased std of the group's returns at t, 1e-6 at least.

    rePIRL's GRPO variant. Where a rollout is the only one left the std is 0, and the released code
    divides by the floor: an advantage of −10⁵ (`alone` "released"). Here such tokens get 0.
    """
    centred = active_leave_one_out(returns, mask, group)
    weight = mask.to(returns.dtype)
    count = group_sums(weight, group)[group]
    mean = group_sums(returns.masked_fill(~mask, 0.0), group)[group] / count.clamp(min=1)
    deviation = (returns - mean).masked_fill(~mask, 0.0)
    variance = group_sums(deviation.square(), group)[group] / (count - 1).clamp(min=1)
    scaled = centred / variance.sqrt().clamp(min=1e-6)
    return scaled if alone == "released" else scaled.masked_fill(count < 2, 0.0)
