"""Attention for packed batches, plugged into any Hugging Face model that takes one.

Tokens of many sequences lie side by side in one row, so that linear layers never see padding. Only
attention must know where a sequence begins; it asks the *plan* that travels with the forward call.

Legend: T tokens in the batch, B sequences, L longest sequence, H query heads, K key-value heads,
G = H / K, D head size.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from prm.engine.kv import SlotCache

PACKED_ATTENTION = "rung_packed"


@runtime_checkable
class AttentionPlan(Protocol):
    """How the tokens of one forward see each other. `position_ids` has one entry per token."""

    position_ids: Int[Tensor, "1 T"]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "T H D"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        """Attention output of every token."""
        ...


class WholeSequences:
    """Every token sees its own sequence up to itself. Optionally keeps keys and values.

    `slots[i]` names the sequence whose keys and values go to slot i of the cache: several slots may
    name the same sequence, which is how n samples share one prompt.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device,
        *,
        cache: SlotCache | None = None,
        first_slot: int = 0,
        slots: Sequence[int] = (),
    ) -> None:
        length = torch.tensor(lengths, device=device)
        longest = max(lengths)
        start = torch.cumsum(length, 0) - length
        within = torch.arange(longest, device=device)
        is_token: Bool[Tensor, "B L"] = within < length[:, None]
        # Past a sequence's end the row repeats its last token: causal, so nothing ever looks there.
        self._rows: Int[Tensor, "B L"] = start[:, None] + torch.minimum(within, length[:, None] - 1)
        self._tokens: Int[Tensor, "T"] = is_token.flatten().nonzero().squeeze(-1)
        self.position_ids = within.expand_as(self._rows).flatten()[self._tokens][None]
        self._cache = cache
        self._slot_range = (first_slot, first_slot + len(slots))
        self._slots = torch.tensor(slots, device=device, dtype=torch.long)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "T H D"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        """See `AttentionPlan.attend`."""
        keys = key[self._rows].transpose(1, 2)
        values = value[self._rows].transpose(1, 2)
        if self._cache is not None:
            self._cache.fill(layer, self._slot_range, keys[self._slots], values[self._slots])
        output = F.scaled_dot_product_attention(
            query[self._rows].transpose(1, 2),
            keys,
            values,
            is_causal=True,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2).flatten(0, 1)[self._tokens]


class NextTokens:
    """One new token per slot: it is appended to its slot and sees all that is there."""

    def __init__(self, cache: SlotCache, lengths: Int[Tensor, "T"]) -> None:
        self._cache = cache
        self._lengths = lengths
        self._slots = torch.arange(len(lengths), device=lengths.device)
        self._span = int(lengths.max()) + 1
        self.position_ids = lengths[None]
        seen = torch.arange(self._span, device=lengths.device) <= lengths[:, None]
        self._seen: Bool[Tensor, "T 1 1 L"] = seen[:, None, None]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "T H D"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        """See `AttentionPlan.attend`. Query heads of one key head are its G query rows."""
        keys, values = self._cache.append(layer, self._slots, self._lengths, key, value)
        count, kv_heads, _ = key.shape
        grouped = query.view(count, kv_heads, -1, query.shape[-1])
        output = F.scaled_dot_product_attention(
            grouped,
            keys[:, :, : self._span],
            values[:, :, : self._span],
            attn_mask=self._seen,
            scale=scale,
        )
        return output.reshape(query.shape)


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """The signature that transformers calls: tensors [1, heads, T, D], result [1, T, H, D]."""
    assert attention_mask is None, "the plan decides who sees whom"
    assert isinstance(module.layer_idx, int)
    output = plan.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scaling,
    )
    return output[None], None


def _no_mask(*_: object, **__: object) -> None:
    """No mask tensor is built: the plan knows."""


AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
