"""What each token weighs in the loss.

The weights are made once, from the whole batch; a loss is then Σ weight · token loss, with no mean
in it. So micro-batches of any size add up to the gradient of the whole batch, padding and the order
of rows change nothing, and λ-GRPO is one more factor.

    token_batch   1 / tokens of the batch                      DAPO, arXiv 2503.14476 Eq. 12
    token_group   1 / (tokens of the group · groups)           λ-GRPO, arXiv 2509.21154
    sequence      1 / (tokens of the response · responses)     GRPO, arXiv 2402.03300 Eq. 3
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.groups import group_sums
from training.settings.base import Normaliser


def denominator(
    mask: Bool[Tensor, "rows time"], group: Int[Tensor, "rows"], normaliser: Normaliser
) -> Float[Tensor, ""]:
    """What a batch counts towards the outer mean: its tokens, its groups or its responses.

    With several ranks, sum it over them (no group may be split between two), give the sum to
    `token_weights`, and multiply the loss by the number of ranks where gradients are averaged.
    A response without tokens, and a group of such, count nothing.
    """
    tokens = mask.sum(dim=1, dtype=torch.float32)
    if normaliser == "token_batch":
        return tokens.sum()
    if normaliser == "sequence":
        return (tokens > 0).sum().float()
    return (group_sums(tokens, group) > 0).sum().float()


def token_weights(
    mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, "rows"],
    normaliser: Normaliser,
    *,
    total: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "rows time"]:
    """The weight of each token. `total` is the denominator of all ranks, by default this batch's.

    They sum to 1 over all ranks.
    """
    tokens = mask.sum(dim=1, dtype=torch.float32)
    total = denominator(mask, group, normaliser) if total is None else total
    within = {
        "token_batch": torch.ones_like(tokens),
        "sequence": tokens,
        "token_group": group_sums(tokens, group)[group],
    }[normaliser]
    return mask / (within * total).clamp(min=1)[:, None]


def truncated_importance(
    trainer_logprobs: Float[Tensor, "rows time"],
    sampler_logprobs: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    *,
    cap: float,
) -> Float[Tensor, "rows time"]:
    """min(π_trainer/π_sampler, cap) per token, detached; 0 outside the mask.

    The sampler (another engine, another precision) is not the policy whose log-probs the trainer
    computes, even with equal weights; this corrects the expectation, truncated to bound its
    variance (Ionides 2008; for language models Yao et al. 2025, "truncated importance sampling").
    It multiplies the surrogate, not the KL or the entropy. Both log-probs at the temperature that
    was sampled at. Ones where the two agree.
    """
    ratio = (trainer_logprobs - sampler_logprobs).detach().masked_fill(~mask, 0.0).clamp(max=20.0)
    return ratio.exp().clamp(max=cap).masked_fill(~mask, 0.0)


def sampler_agreement(
    trainer_logprobs: Float[Tensor, "rows time"],
    sampler_logprobs: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    *,
    cap: float,
) -> dict[str, float]:
    """How far the sampler was from the trainer's policy, for the events.

    sampler_gap      the mean |log π_trainer − log π_sampler| of a token
    effective_share  (Σw)²/(n·Σw²) of the n tokens' weights w, the share of as many samples of the
                     trainer's own that say as much (Kong 1992); told where `cap` is above 0
    """
    tokens = mask.sum()
    gap = (trainer_logprobs - sampler_logprobs).masked_fill(~mask, 0.0).abs().sum() / tokens
    told = {"sampler_gap": float(gap)}
    if cap > 0:
        weights = truncated_importance(trainer_logprobs, sampler_logprobs, mask, cap=cap).double()
        told["effective_share"] = float(weights.sum() ** 2 / (tokens * (weights**2).sum()))
    return told
