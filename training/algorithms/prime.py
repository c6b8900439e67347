"""PRIME: dense rewards from an implicit PRM that learns from the same rollouts' outcomes.

"Process Reinforcement through Implicit Rewards", arXiv 2502.01456. Token rewards are ρ_t = β·(log
π_φ − log π_ref), whole returns of both kinds of reward are centred in the group and added (§3.2):

    A_{i,t} = c_o · A^o_i + c_p · Σ_{s≥t} γ^{s−t} ρ̂_{i,s},     whitened over the batch

Only process rewards are discounted (PRIME-RL/PRIME issue 37). With μ_j the mean of ρ over response
j's tokens, ρ̂_{i,s} is

    rloo       length_normalised   ρ_{i,s} − mean_{j≠i} μ_j         (the authors' text)
               official_code       ρ_{i,s}·K/(K−1) − Σ_j μ_j/(K−1)  (their code, and verl's)
               none                ρ_{i,s}
    grpo       (ρ_{i,s} − mean_j μ_j)/std_j(μ_j)                    (Eq. 7)
    reinforce  ρ_{i,s}                                              (Eq. 8)

The first two agree at the first token of a response alone. Eq. 5 as printed takes the mean of the
other responses' *sums* from every token; that is not implemented. All of them favour long responses
where μ is below the baseline, and short ones where it is above.

Two things that only the code has, both on by default: rewards are scaled by the batch's largest
return, so that β matters to the PRM's loss alone, and advantages are whitened.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.advantages import (
    leave_one_out,
    masked_means,
    scale_by_batch_max,
    suffix_sums,
    whiten,
)
from training.groups import group_means, group_sizes, group_sums, is_flat, standardise
from training.settings.prime import Prime


def prime_advantages(
    log_ratio: Float[Tensor, "rows time"],
    rewards: Float[Tensor, "rows"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Prime,
) -> Float[Tensor, "rows time"]:
    """The policy's advantages from log π_φ − log π_ref and the outcome rewards.

    Raises InvalidInput for a group of one, except with REINFORCE and with the value form.
    """
    token_rewards = settings.beta * log_ratio.masked_fill(~mask, 0.0)
    if settings.process_as == "value":
        combined = value_advantages(token_rewards, rewards, mask)
        return whiten(combined, mask) if settings.whiten else combined
    if settings.process_normaliser == "batch_max":
        token_rewards = scale_by_batch_max(log_ratio, mask)
    process = process_returns(token_rewards, mask, group, settings)
    outcome = outcome_advantages(rewards, group, settings)[:, None]
    combined = settings.process_coefficient * process + settings.outcome_coefficient * outcome
    combined = combined.masked_fill(~mask, 0.0)
    return whiten(combined, mask) if settings.whiten else combined


def process_returns(
    token_rewards: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Prime,
) -> Float[Tensor, "rows time"]:
    """Discounted sums of the centred token rewards ρ̂ from each token on."""
    centred = centred_rewards(token_rewards, mask, group, settings)
    return suffix_sums(centred, mask, discount=settings.process_discount)


def centred_rewards(
    token_rewards: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    settings: Prime,
) -> Float[Tensor, "rows time"]:
    """ρ̂: see the table above."""
    means = masked_means(token_rewards, mask)
    if settings.estimator == "reinforce" or (
        settings.estimator == "rloo" and settings.baseline == "none"
    ):
        centred = token_rewards
    elif settings.estimator == "grpo":
        centre = group_means(means, group)
        deviations = (means - centre[group]).square()
        variance = group_sums(deviations, group) / (group_sizes(group) - 1).clamp(min=1)
        # A group whose means are all equal has nothing to be scaled by.
        std = torch.where(is_flat(means, group), 1.0, variance.sqrt())
        centred = (token_rewards - centre[group, None]) / std[group, None]
    elif settings.baseline == "length_normalised":
        baseline = means - leave_one_out(means, group)
        centred = token_rewards - baseline[:, None]
    else:
        size = group_sizes(group)[group]
        total = group_sums(means, group)[group]
        centred = (token_rewards * size[:, None] - total[:, None]) / (size - 1)[:, None]
    return centred.masked_fill(~mask, 0.0)


def outcome_advantages(
    rewards: Float[Tensor, "rows"], group: Int[Tensor, "rows"], settings: Prime
) -> Float[Tensor, "rows"]:
    """The outcome reward, centred as the estimator does; never discounted."""
    if settings.estimator == "reinforce":
        return rewards
    if settings.estimator == "grpo":
        return standardise(rewards, group)
    return leave_one_out(rewards, group)


def value_advantages(
    token_rewards: Float[Tensor, "rows time"],
    rewards: Float[Tensor, "rows"],
    mask: Bool[Tensor, "rows time"],
) -> Float[Tensor, "rows time"]:
    """r_o − q_{t−1}: the PRM's Q of the prefix as the baseline (§5.4), q of the empty one being 0.

    Worse than its use as rewards, by the paper's Figure 12.
    """
    token_rewards = token_rewards.masked_fill(~mask, 0.0)
    before = token_rewards.cumsum(dim=1) - token_rewards
    return (rewards[:, None] - before).masked_fill(~mask, 0.0)


def pair_accuracy(
    scores: Float[Tensor, "rows"], rewards: Float[Tensor, "rows"], group: Int[Tensor, "rows"]
) -> Float[Tensor, ""]:
    """How often the PRM orders two responses of one problem as their rewards do, in [0, 1].

    Pairs of unequal reward, weighted by the difference; 0.5 where there is none, and for a tie of
    scores nothing is counted. The authors' `compute_dpo_accuracy`, taken over the whole batch.
    """
    gap = rewards[:, None] - rewards[None, :]
    weight = gap.clamp(min=0) * (group[:, None] == group[None, :])
    right = (weight * (scores[:, None] > scores[None, :])).sum()
    return torch.where(weight.sum() > 0, right / weight.sum().clamp(min=1e-12), 0.5)
