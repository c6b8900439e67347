"""Responses to one prompt as branches of it: a forward and backward that reads each prompt once.

The tokens of all trunks lie side by side, then those of all branches. A trunk is a prompt that
several examples share, or the whole of an example that shares its prompt with none. A branch is a
response but for its last token, which is predicted and not read; it sees its trunk, and itself
causally.

Legend: T tokens, U trunks, P longest trunk, B branches, N longest branch, H query heads, K
key-value heads, D head size, M values over all heads of a token.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from training.data import Example


class Branches:
    """See `prm.engine.attention.AttentionPlan`; differentiable.

    `ids` are the packed tokens. `sources` says behind which of them each response token stands, the
    examples in their order, and `targets` which token that is.
    """

    def __init__(self, examples: Sequence[Example], device: torch.device) -> None:
        shared = Counter(example.ids[: example.first] for example in examples)
        trunks: dict[tuple[int, ...], int] = {}
        rows: list[tuple[int, tuple[int, ...]]] = []
        for example in examples:
            prompt, read = example.ids[: example.first], example.ids[:-1]
            begin = prompt if shared[prompt] > 1 else read
            rows.append((trunks.setdefault(begin, len(trunks)), read[len(begin) :]))
        branches = [(trunk, own) for trunk, own in rows if own]
        trunk_lengths, branch_lengths = [*map(len, trunks)], [len(own) for _, own in branches]
        starts = [0, *accumulate(trunk_lengths)]
        self._num_trunk_tokens = starts[-1]
        self._trunks = _Padding(trunk_lengths, device)
        self._branches = _Padding(branch_lengths, device) if branches else None
        self._trunk_of_branch = torch.tensor([trunk for trunk, _ in branches], device=device)
        self._mask = _mask(self._trunks, self._branches, self._trunk_of_branch)
        packed = [*trunks, *(own for _, own in branches)]
        self.ids: Int[Tensor, "T"] = _of([token for ids in packed for token in ids], device)
        first = [0] * len(trunks) + [trunk_lengths[trunk] for trunk, _ in branches]
        places = [at + i for at, ids in zip(first, packed, strict=True) for i in range(len(ids))]
        self.position_ids: Int[Tensor, "1 T"] = _of(places, device)[None]
        sources, behind = list[int](), starts[-1]
        for example, (trunk, own) in zip(examples, rows, strict=True):
            seen = range(starts[trunk] + example.first - 1, starts[trunk] + trunk_lengths[trunk])
            sources.extend(seen[: len(example.ids) - example.first])
            sources.extend(range(behind, behind + len(own)))
            behind += len(own)
        self.sources: Int[Tensor, "n"] = _of(sources, device)
        self.targets: Int[Tensor, "n"] = _of(
            [t for e in examples for t in e.ids[e.first :]], device
        )

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "T H D"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        """See `AttentionPlan.attend`."""
        heads = (query.shape[1], key.shape[1], value.shape[1])
        sizes = [self._num_trunk_tokens, len(query) - self._num_trunk_tokens]
        parts = [torch.split(tensor.flatten(1), sizes) for tensor in (query, key, value)]
        trunk, branch = zip(*parts, strict=True)
        padded = [self._trunks.pad(x) for x in trunk]
        found = _attention(padded, heads, scale)
        output = self._trunks.unpad(found)
        if self._branches is None:
            return output.view(query.shape)
        queries, keys, values = (self._branches.pad(x) for x in branch)
        # A trunk's keys and values are those of all its branches: their gradients add up.
        behind = [x.index_select(0, self._trunk_of_branch) for x in padded[1:]]
        all_keys, all_values = (
            torch.cat([ours, own], 1) for ours, own in zip(behind, (keys, values), strict=True)
        )
        found = _attention([queries, all_keys, all_values], heads, scale, self._mask)
        return torch.cat([output, self._branches.unpad(found)]).view(query.shape)


class _Padding:
    """Sequences side by side, and the same one under the other."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        length = _of(lengths, device)
        self.lengths = length
        self.longest = max(lengths)
        start = length.cumsum(0) - length
        within = torch.arange(self.longest, device=device)
        # Behind its end a row repeats its last token, where nothing looks.
        rows = start[:, None] + torch.minimum(within, length[:, None] - 1)
        self._shape = rows.shape
        self._rows = rows.flatten()
        is_there = (within < length[:, None]).flatten()
        self._places = is_there.nonzero().squeeze(1)

    def pad(self, x: Float[Tensor, "t M"]) -> Float[Tensor, "rows longest M"]:
        """One row per sequence."""
        found: Tensor = _Take.apply(x, self._rows, self._places)  # type: ignore[no-untyped-call]
        return found.view(*self._shape, -1)

    def unpad(self, x: Float[Tensor, "rows longest M"]) -> Float[Tensor, "t M"]:
        """Side by side again."""
        flat = x.flatten(0, 1)
        found: Tensor = _Put.apply(flat, self._places)  # type: ignore[no-untyped-call]
        return found


class _Take(torch.autograd.Function):
    """x[rows], whose gradient is that of `places` alone: where each token stands for itself.

    What only repeats a token is seen by nothing, so that its gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class _Put(torch.autograd.Function):
    """x[places], where no place is named twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_rows = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        found = gradients[0].new_zeros(ctx.num_rows, gradients[0].shape[1])
        return found.index_copy_(0, places, gradients[0]), None


def _attention(
    rows: Sequence[Tensor], heads: tuple[int, ...], scale: float, mask: Tensor | None = None
) -> Float[Tensor, "rows longest M"]:
    """Of queries, keys and values `[rows, length, M]`; causal where no mask is given."""
    query, key, value = (
        x.view(*x.shape[:2], count, -1).transpose(1, 2)
        for x, count in zip(rows, heads, strict=True)
    )
    found = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if mask is None else mask.to(query.dtype),
        is_causal=mask is None,
        scale=scale,
        enable_gqa=heads[0] != heads[1],
    )
    return found.transpose(1, 2).flatten(2)


def _mask(
    trunks: _Padding, branches: _Padding | None, trunk_of_branch: Int[Tensor, "B"]
) -> Float[Tensor, "B 1 N P+N"] | None:
    """0 where a branch's token sees a key of its trunk, or of its own, and -inf where not."""
    if branches is None:
        return None
    device, own = branches.lengths.device, branches.longest
    beyond = torch.arange(trunks.longest, device=device) >= trunks.lengths[trunk_of_branch, None]
    later = torch.ones(own, own, dtype=torch.bool, device=device).triu(1)
    is_hidden = torch.cat(
        [
            beyond[:, None, :].expand(-1, own, -1),
            later.expand(len(beyond), -1, -1),
        ],
        2,
    )
    return torch.zeros(is_hidden.shape, device=device).masked_fill_(is_hidden, -torch.inf)[:, None]


def _of(values: Sequence[int], device: torch.device) -> Int[Tensor, "n"]:
    return torch.tensor(values, dtype=torch.long, device=device)
