"""The policy's loss: a clipped surrogate, and a KL and an entropy term where they are wanted.

Every function takes the token weights of `training.weighting` and sums, so that the parts of a
batch add up to the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.divergence import LARGEST, token_kl
from training.ranks import ALONE, Ranks
from training.settings.base import PolicySettings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossPart:
    """A part of a batch's loss, and what to report of it.

    `sums` are sums over `tokens` response tokens, detached: parts are averaged by `averages`.

    clipped, dual_clipped   tokens on which a clip decides, and so has no gradient
    ratio                   π/π_old
    approx_kl, approx_kl_k3 KL(π_old‖π) by k1 and k3
    reference_kl, entropy   where the settings have them
    """

    loss: Float[Tensor, ""]
    tokens: Tensor
    sums: Mapping[str, Tensor]


def averages(parts: Sequence[LossPart], ranks: Ranks = ALONE) -> dict[str, float]:
    """Each quantity's mean over all tokens of these parts, and the loss, which is their sum.

    With several ranks over the parts of all of them; each has at least one.
    """
    names = list(parts[0].sums) if parts else []
    columns = [
        [float(part.loss.detach()), float(part.tokens), *(float(part.sums[n]) for n in names)]
        for part in parts
    ]
    sums = [sum(column) for column in zip(*columns, strict=True)] or [0.0, 0.0]
    loss, tokens, *others = ranks.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
    means = {name: own / max(1.0, tokens) for name, own in zip(names, others, strict=True)}
    return {"loss": loss, **means}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """The clipped surrogate's loss at each token, and where a clip decided."""

    losses: Float[Tensor, "rows time"]
    ratios: Float[Tensor, "rows time"]
    is_clipped: Bool[Tensor, "rows time"]
    is_dual_clipped: Bool[Tensor, "rows time"]


def clipped_surrogate(
    settings: PolicySettings,
    logprobs: Float[Tensor, "rows time"],
    old_logprobs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
) -> Surrogate:
    """−min(r·A, clip(r, 1−ε_low, 1+ε_high)·A) with r = π/π_old: PPO, arXiv 1707.06347 Eq. 7.

    With `dual_clip` c, and A < 0, at most −c·A (arXiv 1912.09729 Eq. 5). Advantages are constants.
    The log-ratio is bounded at 20, where the clip has decided long since.
    """
    advantages = advantages.detach().masked_fill(~mask, 0.0)
    log_ratio = (logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0)
    ratios = log_ratio.clamp(min=-LARGEST, max=LARGEST).exp()
    plain = -advantages * ratios
    bounded = -advantages * ratios.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    losses = torch.maximum(plain, bounded)
    is_dual = torch.zeros_like(mask)
    if settings.dual_clip is not None:
        most = -advantages * settings.dual_clip
        is_dual = (advantages < 0) & (losses > most)
        losses = torch.where(is_dual, most, losses)
    return Surrogate(
        losses=losses.masked_fill(~mask, 0.0),
        ratios=ratios,
        is_clipped=mask & (bounded > plain) & ~is_dual,
        is_dual_clipped=mask & is_dual,
    )


def policy_loss(
    settings: PolicySettings,
    logprobs: Float[Tensor, "rows time"],
    old_logprobs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    weights: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    *,
    importance: Float[Tensor, "rows time"] | None = None,
    reference_logprobs: Float[Tensor, "rows time"] | None = None,
    entropies: Float[Tensor, "rows time"] | None = None,
) -> LossPart:
    """Σ weight · (importance · surrogate + c_KL · KL − c_H · H), over the rows given.

    `importance`: see `training.weighting.truncated_importance`. `entropies` are those of the
    policy's next-token distributions, with gradient; `reference_logprobs` and they are needed
    where their coefficients are above 0. λ-GRPO's weights divide the KL term, too (its Eq. 1).
    """
    surrogate = clipped_surrogate(settings, logprobs, old_logprobs, advantages, mask)
    losses = surrogate.losses if importance is None else surrogate.losses * importance.detach()
    log_ratio = (logprobs.detach() - old_logprobs).masked_fill(~mask, 0.0)
    sums = {
        "clipped": surrogate.is_clipped.sum(),
        "dual_clipped": surrogate.is_dual_clipped.sum(),
        "ratio": surrogate.ratios.detach().masked_fill(~mask, 0.0).sum(),
        "approx_kl": -log_ratio.sum(),
        "approx_kl_k3": token_kl(old_logprobs, logprobs.detach(), mask, "k3").sum(),
    }
    if importance is not None:
        sums["importance"] = importance.masked_fill(~mask, 0.0).sum()
    if reference_logprobs is not None:
        kl = token_kl(logprobs, reference_logprobs.detach(), mask, settings.kl_estimator)
        losses = losses + settings.kl_coefficient * kl
        sums["reference_kl"] = kl.detach().sum()
    if entropies is not None:
        entropies = entropies.masked_fill(~mask, 0.0)
        losses = losses - settings.entropy_coefficient * entropies
        sums["entropy"] = entropies.detach().sum()
    assert reference_logprobs is not None or not settings.kl_coefficient, "the KL wants a reference"
    assert entropies is not None or not settings.entropy_coefficient, "the bonus wants entropies"
    return LossPart(loss=(losses * weights.detach()).sum(), tokens=mask.sum(), sums=sums)
