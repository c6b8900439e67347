"""rePIRL's loss of the PRM: experts' responses up, the policy's failed ones down.

arXiv 2602.07832. A response's energy is R = Σ_t r_t, R̄ its mean per token; E is the expert pool, F
the failed one, log w the log importance weight and w̃ the weights, detached (see `irl_weights`):

    paper          Σ_F w̃·R̄ − mean_E R̄                             (Algorithm 1, lines 6 to 8)
    mle            log mean_{F (∪E)} w − mean_E R                   (Eq. 5)
    discriminator  −mean_E log D − mean_F log(1−D), D = w/(w + z)   (Proposition 3)
    ce             −mean_E log σ(R) − mean_F log σ(−R)              (the same with z·π put to 1)

"paper" is linear in r, so that with |r| ≤ 1 its optimum is ±1 where one pool has more tokens than
the other, and nothing is learnt about prefixes that they share. With base π_ref and a pair in place
of the pools "mle" is DPO. Algorithm 1 divides by rollouts; the code and this by pool sizes.

The released code takes the softmax inside micro-batches of one response, where every weight is 1:
normalise "response", (Σ_F R̄ − Σ_E R̄)/(|F| + |E|), whose two sides are not even averaged apart.
All losses here are functions of R of a whole batch: for micro-batches see `training.coupled`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from training.algorithms.irl_weights import (
    effective_sizes,
    group_logsumexp,
    log_weights,
    normalised_weights,
    self_consistent_log_z,
)
from training.groups import group_sums
from training.settings.repirl import Repirl


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IrlBatch:
    """Rollouts and demonstrations side by side, rows of a batch in any order.

    `is_expert` and `is_failed` are `repirl.pools`. `logprobs` are Σ log π of each response under
    the policy that wrote the rollouts, of the demonstrations too; `reference_logprobs` the same
    under the reference model, where the weights want them.
    """

    group: Int[Tensor, "rows"]
    lengths: Int[Tensor, "rows"]
    is_expert: Bool[Tensor, "rows"]
    is_failed: Bool[Tensor, "rows"]
    logprobs: Float[Tensor, "rows"]
    reference_logprobs: Float[Tensor, "rows"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IrlLoss:
    """The PRM's loss, the weights w̃ on the failed pool, and what to report.

    ess                             1/(|F|·Σ w̃²), the failed pool's effective share, mean over
                                    problems
    problems                        problems with both pools, which the loss is a mean over; 1 where
                                    they are pooled
    skipped                         problems that lack a pool
    expert_reward, failed_reward    mean R̄ of the two pools
    """

    loss: Float[Tensor, ""]
    weights: Float[Tensor, "rows"]
    metrics: dict[str, Tensor]


def irl_loss(reward_sums: Float[Tensor, "rows"], batch: IrlBatch, settings: Repirl) -> IrlLoss:
    """The loss from R = Σ_t r_t of every row: a mean over problems that have both pools.

    Pooled ("ce" always is) the batch counts as one problem, and a pool that is empty as 0; so does
    each response, where they are normalised one by one. Where no problem has both pools the loss is
    0 without a gradient; `metrics["problems"]` says so.
    """
    is_pooled = settings.normalise != "prompt" or settings.prm_loss == "ce"
    group = _problems(batch.group, settings) if is_pooled else batch.group
    experts, failed = batch.is_expert, batch.is_failed
    is_seen = _count(experts | failed, group) > 0
    has_both = is_seen if is_pooled else (_count(experts, group) * _count(failed, group)) > 0
    experts, failed = experts & has_both[group], failed & has_both[group]
    log_w = log_weights(
        reward_sums,
        batch.lengths,
        batch.logprobs,
        batch.reference_logprobs,
        failed,
        group,
        settings,
    )
    weights = normalised_weights(log_w, failed, group)
    per_token = reward_sums / batch.lengths.clamp(min=1)
    match settings.prm_loss:
        case "paper":
            losses = group_sums(weights * per_token, group) - _mean(per_token, experts, group)
        case "mle":
            pool = failed | experts if settings.experts_in_partition else failed
            size = _count(pool, group).clamp(min=1)
            log_z = group_logsumexp(log_w, pool, group) - size.log()
            losses = log_z - _mean(reward_sums, experts, group)
        case "discriminator":
            losses = discriminator_losses(log_w, experts, failed, group)
        case "ce":
            losses = _mean(softplus(-reward_sums), experts, group)
            losses = losses + _mean(softplus(reward_sums), failed, group)
    count = has_both.sum()
    sizes = effective_sizes(weights, failed, group)
    return IrlLoss(
        loss=losses.masked_fill(~has_both, 0.0).sum() / count.clamp(min=1),
        weights=weights,
        metrics={
            "ess": (sizes * has_both).sum() / count.clamp(min=1),
            "problems": count,
            "skipped": is_seen.sum() - count,
            "expert_reward": per_token.detach()[batch.is_expert].mean().nan_to_num(),
            "failed_reward": per_token.detach()[batch.is_failed].mean().nan_to_num(),
        },
    )


def discriminator_losses(
    log_w: Float[Tensor, "rows"],
    experts: Bool[Tensor, "rows"],
    failed: Bool[Tensor, "rows"],
    group: Int[Tensor, "rows"],
) -> Float[Tensor, "groups"]:
    """Cross-entropy of D = σ(log w − log z), z being the self-consistent one."""
    mass = experts / _count(experts, group).clamp(min=1)[group]
    mass = mass + failed / _count(failed, group).clamp(min=1)[group]
    logits = log_w - self_consistent_log_z(log_w, mass, group)[group]
    real, made = softplus(-logits), softplus(logits)
    return _mean(real, experts, group) + _mean(made, failed, group)


def _problems(group: Int[Tensor, "rows"], settings: Repirl) -> Int[Tensor, "rows"]:
    """What counts as a problem where problems do not: the batch, or each response."""
    if settings.normalise == "response":
        return torch.arange(len(group), device=group.device)
    return torch.zeros_like(group)


def _count(pool: Bool[Tensor, "rows"], group: Int[Tensor, "rows"]) -> Float[Tensor, "groups"]:
    return group_sums(pool.float(), group)


def _mean(
    values: Float[Tensor, "rows"], pool: Bool[Tensor, "rows"], group: Int[Tensor, "rows"]
) -> Float[Tensor, "groups"]:
    """The mean over each group's pool, 0 where it is empty."""
    inside = values.masked_fill(~pool, 0.0)
    return group_sums(inside, group) / _count(pool, group).clamp(min=1)
