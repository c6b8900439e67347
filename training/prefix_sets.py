"""The process sets of a group: which of its responses share which prefix.

"GRPO is Secretly a Process Reward Model", arXiv 2509.21154. For token t of response i,

    λ(i, t) = the responses j of the group whose tokens 0..t are those of i

with token t among them, all such responses (the definition as printed does not say that the set is
maximal; the authors' `InfPRMTree` makes it so). Consecutive tokens with the same λ are one process
step. The whole group, with the prompt as its prefix, is the tree's root.

Rows are sorted as strings; then a set is a run of neighbours, and it ends where two neighbours'
common prefix does. That is exact, without hashing, and O(rows · time). Token ids are compared, not
texts: two tokenisations of one text share nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixSets:
    """`size` is |λ(i, t)|, 0 outside the mask. `node` tells the sets of one column apart: two rows
    are in the same set at t where they have the same node at t. `step` counts the process steps of
    a response from 0; it is −1 outside the mask.
    """

    size: Int[Tensor, "rows time"]
    node: Int[Tensor, "rows time"]
    step: Int[Tensor, "rows time"]

    def loss_weights(self) -> Float[Tensor, "rows time"]:
        """1/|λ|, 0 outside the mask: over each tree edge they sum to 1."""
        return (self.size > 0) / self.size.clamp(min=1).float()

    def mean_rewards(self, rewards: Float[Tensor, "rows"]) -> Float[Tensor, "rows time"]:
        """R_{i,t}: the mean outcome reward of λ(i, t), 0 outside the mask (the induced PRM)."""
        inside = self.size > 0
        spread = rewards[:, None].expand(self.size.shape).masked_fill(~inside, 0.0)
        totals = torch.zeros_like(spread).scatter_add(0, self.node, spread).gather(0, self.node)
        return (totals / self.size.clamp(min=1)).masked_fill(~inside, 0.0)

    def diagnostics(self, group: Int[Tensor, "rows"]) -> dict[str, float]:
        """`path_depth`: process steps of a response. `intermediate`: the share of a response's
        tokens that others share. `flat`: the share of groups in which nobody shares a token.
        Means over responses, and over groups.
        """
        inside = self.size > 0
        lengths = inside.sum(dim=1).clamp(min=1)
        shared = (self.size > 1).sum(dim=1)
        groups = torch.unique(group)
        mixed = torch.unique(group[shared > 0])
        return {
            "path_depth": float((self.step.amax(dim=1) + 1).float().mean()),
            "intermediate": float((shared / lengths).mean()),
            "flat": 1 - len(mixed) / max(1, len(groups)),
        }


def prefix_sets(
    ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"], group: Int[Tensor, "rows"]
) -> PrefixSets:
    """The sets of all groups of a batch.

    Responses of a group begin in the same column, and end where the mask does: one that was cut
    off, or whose end token was stripped, may be a prefix of another.
    """
    order, common = _sorted(ids, mask, group)
    columns = torch.arange(ids.shape[1], device=ids.device)
    parts = common.to(ids.device)[:, None] <= columns  # [rows, time]: parted from the row before
    rank = parts.cumsum(dim=0) - 1 if len(ids) else parts.long()
    node = torch.empty_like(rank)
    node[order.to(ids.device)] = rank
    count = torch.zeros_like(node).scatter_add(0, node, mask.long())
    size = count.gather(0, node).masked_fill(~mask, 0)
    before = torch.nn.functional.pad(size[:, :-1], (1, 0)) if ids.shape[1] else size
    step = ((size != before) & mask).cumsum(dim=1) - 1
    return PrefixSets(size=size, node=node, step=step.masked_fill(~mask, -1))


def _sorted(
    ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"], group: Int[Tensor, "rows"]
) -> tuple[Int[Tensor, "rows"], Int[Tensor, "rows"]]:
    """Rows in the order of (group, tokens), and how many columns each has in common with the row
    before it: none where that is of another group.

    Big-endian bytes are compared as the numbers are, and padding is 0, so that a response comes
    right before those that continue it.
    """
    tokens = torch.where(mask, ids + 1, 0).cpu()
    keys = torch.cat([group.cpu()[:, None], tokens], dim=1).numpy().astype(">u4")
    rows = [row.tobytes() for row in keys]
    order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), dtype=torch.long)
    tokens, groups = tokens[order], group.cpu()[order]
    differs = tokens[1:] != tokens[:-1]
    first = torch.where(differs.any(dim=1), differs.int().argmax(dim=1), tokens.shape[1])
    common = torch.zeros(len(rows), dtype=torch.long)
    common[1:] = first.masked_fill(groups[1:] != groups[:-1], 0)
    return order, common
