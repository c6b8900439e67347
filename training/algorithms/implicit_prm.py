"""The implicit PRM, trained on outcome labels.

With the reward of a response parameterised as r = β · s, s = Σ_t (log π_φ − log π_ref), a
classifier of right and wrong responses learns step rewards that nobody labelled: "Free Process
Rewards without Process Labels", arXiv 2412.01981, §3. Below, y is the label, and w and l are a
right and a wrong response of one problem.

    ce    −[y·log σ(βs) + (1−y)·log(1−σ(βs))]                        (Eq. 5)
    dpo   −log σ(β(s_w − s_l))                                 (arXiv 2305.18290 Eq. 7)
    kto   right 1 − σ(β(s − z)), wrong 1 − σ(β(z − s))         (arXiv 2402.01306 Eq. 8)
    nca   −log σ(βs_w) − ½·log σ(−βs_w) − ½·log σ(−βs_l)       (arXiv 2402.05369, as TRL's nca_pair)

Where text and the authors' code (PRIME-RL/ImplicitPRM) differ, the code is followed: the printed CE
lacks its minus sign, and the log-ratio is summed over the response, not divided by its length. NCA
is in the paper alone. A PRM trained so is a bad policy (Table 3: 45.2 → 25.8 with DPO): never
sample from it.

Every loss is returned per response or per pair, for whoever knows the number in the whole batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from training.settings.supervised import ImplicitPrm


def sequence_log_ratio(
    logprobs: Float[Tensor, "rows time"],
    is_target: Bool[Tensor, "rows time"],
    reference_logprobs: Float[Tensor, "rows"],
) -> Float[Tensor, "rows"]:
    """s = Σ_t log π_φ − Σ_t log π_ref over the response tokens, the end token among them.

    Of the reference, which is frozen, the sum is all that training needs: it is computed once.
    """
    return (logprobs * is_target).sum(dim=-1) - reference_logprobs


def token_rewards(
    logprobs: Float[Tensor, "rows time"],
    reference_logprobs: Float[Tensor, "rows time"] | None,
    mask: Bool[Tensor, "rows time"],
    *,
    beta: float,
) -> Float[Tensor, "rows time"]:
    """ρ_t = β · (log π_φ − log π_ref), Eq. 3; without a reference β · log π_φ (Table 5).

    Their running sum is the prefix's Q, β·log E_{π_ref}[exp(r/β)] by Proposition 3.1, and a step's
    process reward is the sum over its tokens (the printed sum begins one step early).
    """
    ratio = logprobs if reference_logprobs is None else logprobs - reference_logprobs
    return beta * ratio.masked_fill(~mask, 0.0)


def ce_losses(
    log_ratio: Float[Tensor, "rows"], labels: Float[Tensor, "rows"], *, beta: float
) -> Float[Tensor, "rows"]:
    """Cross-entropy of each response; labels lie in [0, 1], as a share of passed tests does.

    ln 2 where φ is still the reference; the gradient by each token's log-prob is β(σ(βs) − y).
    """
    return binary_cross_entropy_with_logits(beta * log_ratio, labels, reduction="none")


def implicit_prm_loss(
    log_ratio: Float[Tensor, "rows"], labels: Float[Tensor, "rows"], *, beta: float
) -> Float[Tensor, ""]:
    """The mean of `ce_losses` where these rows are the whole batch."""
    return ce_losses(log_ratio, labels, beta=beta).mean()


def dpo_losses(
    right: Float[Tensor, "pairs"], wrong: Float[Tensor, "pairs"], *, beta: float
) -> Float[Tensor, "pairs"]:
    """Of each pair, from the log-ratios of its right and its wrong response."""
    return -logsigmoid(beta * (right - wrong))


def nca_losses(
    right: Float[Tensor, "pairs"], wrong: Float[Tensor, "pairs"], *, beta: float
) -> Float[Tensor, "pairs"]:
    """Of each pair; unlike DPO's it says where each of the two should be, not only their order."""
    pull = -logsigmoid(beta * right)
    push = -logsigmoid(-beta * right) - logsigmoid(-beta * wrong)
    return pull + push / 2


def kto_losses(
    log_ratio: Float[Tensor, "rows"],
    labels: Float[Tensor, "rows"],
    z: Float[Tensor, ""],
    settings: ImplicitPrm,
) -> Float[Tensor, "rows"]:
    """Of each response, against the reference point `z` (see `kto_reference_point`)."""
    is_right = labels > 0.5
    gain = settings.beta * (log_ratio - z.detach())
    weight = torch.where(is_right, settings.right_weight, settings.wrong_weight)
    return weight * (1 - torch.sigmoid(torch.where(is_right, gain, -gain)))


def kto_reference_point(mismatched: Float[Tensor, "rows"]) -> Float[Tensor, ""]:
    """z, an estimate of KL(π_φ‖π_ref) that is never negative and has no gradient.

    `mismatched` are log-ratios of responses behind the problem of another row (arXiv 2402.01306
    §4.1), so that it costs a forward of its own.
    """
    return mismatched.detach().mean().clamp(min=0)


def pairs_of(
    labels: Sequence[float], group: Sequence[int], how: Literal["cross", "one"] = "cross"
) -> Int[Tensor, "pairs 2"]:
    """(right, wrong) row indices within each group; a group without both kinds has no pair.

    "cross" is the full product, as in `train_dpo.py`: a group of many pairs weighs more. "one"
    gives each right response one wrong one, in turn.
    """
    kinds: dict[int, tuple[list[int], list[int]]] = {}
    for row, (label, number) in enumerate(zip(labels, group, strict=True)):
        kinds.setdefault(number, ([], []))[0 if label > 0.5 else 1].append(row)
    found: list[tuple[int, int]] = []
    for right, wrong in kinds.values():
        if not wrong:
            continue
        if how == "one":
            found += [(row, wrong[place % len(wrong)]) for place, row in enumerate(right)]
        else:
            found += [(one, other) for one in right for other in wrong]
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)
