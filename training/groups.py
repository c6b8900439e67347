"""Statistics of groups: the rollouts of one problem.

`group[i]` is the index of row i's group. Rows stand in any order, groups may differ in size, and
numbers may be left out, as when groups were dropped: nothing below depends on how rows lie.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prm.errors import InvalidInput
from training.settings.base import AccuracyFilter, Scale


def group_sizes(group: Int[Tensor, "rows"]) -> Int[Tensor, "groups"]:
    """How many rows each group has; 0 for a number that is left out."""
    return torch.bincount(group)


def group_sums(
    values: Float[Tensor, "rows *rest"], group: Int[Tensor, "rows"]
) -> Float[Tensor, "groups *rest"]:
    """Sums over the rows of each group."""
    count = int(group.max()) + 1 if len(group) else 0
    return values.new_zeros(count, *values.shape[1:]).index_add(0, group, values)


def group_means(
    values: Float[Tensor, "rows"], group: Int[Tensor, "rows"]
) -> Float[Tensor, "groups"]:
    """The mean of each group, 0 for a number that is left out."""
    return group_sums(values, group) / group_sizes(group).clamp(min=1)


def is_flat(values: Float[Tensor, "rows"], group: Int[Tensor, "rows"]) -> Bool[Tensor, "groups"]:
    """Whether a group's values are all equal, so that nothing can be learnt from comparing them."""
    count = len(group_sizes(group))
    least = values.new_full((count,), torch.inf).scatter_reduce(0, group, values, "amin")
    most = values.new_full((count,), -torch.inf).scatter_reduce(0, group, values, "amax")
    return most <= least


def is_within(
    rewards: Float[Tensor, "rows"], group: Int[Tensor, "rows"], bounds: AccuracyFilter
) -> Bool[Tensor, "groups"]:
    """PRIME's online filter (arXiv 2502.01456 §4.1): mean reward within the bounds, inclusive.

    A mean of binary rewards that equals a bound must pass it whatever the precision: 1/5 summed in
    float32 is not 0.2.
    """
    means = group_means(rewards, group)
    margin = 1e-6
    within = (means >= bounds.low - margin) & (means <= bounds.high + margin)
    return within & (group_sizes(group) > 0)


def standardise(
    rewards: Float[Tensor, "rows"],
    group: Int[Tensor, "rows"],
    *,
    scale: Scale = "unbiased",
    epsilon: float = 0.0,
) -> Float[Tensor, "rows"]:
    """(r − mean)/(std + ε) in each group: GRPO's advantage, arXiv 2402.03300 §4.1.2.

    `scale` names the ddof, on which papers and codes differ by √(K/(K−1)): "unbiased" (1: TRL,
    verl, the λ-GRPO figure), "population" (0: the text of PRL v2), "none" (no division: Dr. GRPO).
    A flat group has the advantage 0 exactly; rounding is not divided by a standard deviation of 0.
    Raises InvalidInput for a group of one, whose advantage verl makes the bare reward.
    """
    require_pairs(group)
    sizes = group_sizes(group)
    centred = rewards - group_means(rewards, group)[group]
    centred = centred.masked_fill(is_flat(rewards, group)[group], 0.0)
    if scale == "none":
        return centred
    ddof = 1 if scale == "unbiased" else 0
    variance = group_sums(centred.square(), group) / (sizes - ddof).clamp(min=1)
    std = variance.sqrt()[group]
    return torch.where(std > 0, centred / (std + epsilon).clamp(min=1e-30), 0.0)


def require_pairs(group: Int[Tensor, "rows"]) -> None:
    """Raises InvalidInput where a group has one row: it has nothing to be compared with."""
    sizes = group_sizes(group)
    alone = (sizes == 1).nonzero()
    if len(alone):
        raise InvalidInput(
            f"{len(alone)} of {int((sizes > 0).sum())} groups have one rollout, the first of them "
            f"group {int(alone[0])}: a baseline needs two at least; set group_size to 2 or more",
            param="group_size",
        )
