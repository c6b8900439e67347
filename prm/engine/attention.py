"""Attention for packed batches, plugged into any Hugging Face model that takes one.

Tokens of many sequences lie side by side in one row, so that linear layers never see padding. Only
attention must know where a sequence begins; it asks the *plan* that travels with the forward call.

Legend: T tokens in the batch, B sequences, L longest sequence, H query heads, K key-value heads,
G = H / K, D head size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from prm.engine.kv import KeyValuePool, SlotCache

PACKED_ATTENTION = "rung_packed"
# Query-key pairs of one padded call: 2^24 floats of mask are 64 MB.
MASK_ENTRIES = 1 << 24
# Queries of one piece of a row: shorter ones save more keys, and copy more of them. 12 % more
# tokens/s than whole rows of 40 to 400 tokens (4 heads of 32, one AVX-512 core).
PIECE_LENGTH = 64
# Padded over useful pairs of a call; between 1.15 and 1.5 it makes no difference that can be seen.
MOST_PADDING = 1.3
# A call costs about as much as this many pairs of padding.
CALL_ENTRIES = 1 << 14


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
        # Past a sequence's end the row repeats its last token: causal, so nothing ever looks there.
        self._rows: Int[Tensor, "B L"] = start[:, None] + torch.minimum(within, length[:, None] - 1)
        self._tokens: Int[Tensor, "T"] = torch.tensor(
            [row * longest + at for row, size in enumerate(lengths) for at in range(size)],
            device=device,
        )
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

    def __init__(self, cache: SlotCache, lengths: Sequence[int], device: torch.device) -> None:
        self._cache = cache
        length = torch.tensor(lengths, device=device)
        self._places = cache.places(length)
        # Known here: asking the device for it would wait for all that is queued there.
        self._span = max(lengths) + 1
        self.position_ids = length[None]
        is_hidden = torch.arange(self._span, device=device) > length[:, None]
        self._is_hidden: Bool[Tensor, "T 1 1 L"] = is_hidden[:, None, None]
        self._additive: Float[Tensor, "TK 1 L"] | None = None

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "T H D"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        """See `AttentionPlan.attend`. Query heads of one key head are its G query rows."""
        keys, values = self._cache.append(layer, self._places, key, value)
        count, kv_heads, _ = key.shape
        grouped = query.view(count, kv_heads, -1, query.shape[-1])
        keys, values = keys[:, :, : self._span], values[:, :, : self._span]
        if query.device.type == "cpu" and query.dtype == torch.float32:
            return self._products(grouped, keys, values, scale).reshape(query.shape)
        output = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=~self._is_hidden, scale=scale
        )
        return output.reshape(query.shape)

    def _products(
        self,
        query: Float[Tensor, "T K G D"],
        keys: Float[Tensor, "T K L D"],
        values: Float[Tensor, "T K L D"],
        scale: float,
    ) -> Float[Tensor, "TK G D"]:
        """Two batched products and a softmax: for a few queries a CPU's flash kernel takes two to
        four times as long (256 slots with 2 queries, 55 keys of 32; 64 with 3, 60 of 64).
        """
        if self._additive is None:
            mask = torch.zeros(self._is_hidden.shape, device=query.device)
            mask = mask.masked_fill_(self._is_hidden, -torch.inf)[:, 0]
            self._additive = mask.repeat_interleave(query.shape[1], 0)
        rows, flat_keys, flat_values = (x.flatten(0, 1) for x in (query, keys, values))
        scores = torch.baddbmm(self._additive, rows, flat_keys.transpose(1, 2), alpha=scale)
        return torch.bmm(scores.softmax(-1), flat_values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Neighbouring tokens of one branch: they see the `context` slots, and themselves causally."""

    start: int
    length: int
    context: npt.NDArray[np.int64]

    @property
    def span(self) -> int:
        """Tokens that the last one sees."""
        return len(self.context) + self.length


class PrefixRows:
    """Branches of a prefix tree: new tokens see what the pool holds of their ancestors.

    A layer's keys and values are written to the pool before anything attends, so a row may continue
    another row of the same forward, and a prefix that many rows share is computed once.
    """

    def __init__(
        self,
        pool: KeyValuePool,
        rows: Sequence[Row],
        *,
        slots: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
    ) -> None:
        device = pool.device
        self._pool = pool
        self._slots = torch.from_numpy(slots).to(device)
        self.position_ids = torch.from_numpy(positions).to(device)[None]
        self._in_order = (
            _OneCall(rows, slots, device)
            if device.type == "cuda" and pool.is_half_precision
            else None
        )
        pieces = [] if self._in_order else [piece for row in rows for piece in _cut(row, slots)]
        self._buckets = [_Bucket(bucket, slots, device) for bucket in _bucket(pieces)]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "T H D"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        """See `AttentionPlan.attend`."""
        self._pool.write(layer, self._slots, key, value)
        if self._in_order is not None:
            return self._in_order.attend(self._pool, layer, query, scale)
        output = torch.empty_like(query)
        for bucket in self._buckets:
            bucket.attend(self._pool, layer, query, scale, output)
        return output


class _Bucket:
    """Rows of similar shape, padded to one size: N queries and L keys each."""

    def __init__(
        self, rows: Sequence[Row], slots: npt.NDArray[np.int64], device: torch.device
    ) -> None:
        self.num_queries = max(row.length for row in rows)
        self.num_keys = max(row.span for row in rows)
        query_index = np.zeros((len(rows), self.num_queries), np.int64)
        key_slots = np.zeros((len(rows), self.num_keys), np.int64)
        is_query = np.zeros((len(rows), self.num_queries), bool)
        for place, row in enumerate(rows):
            own = slice(row.start, row.start + row.length)
            query_index[place, : row.length] = np.arange(row.start, row.start + row.length)
            query_index[place, row.length :] = row.start
            is_query[place, : row.length] = True
            key_slots[place, : len(row.context)] = row.context
            key_slots[place, len(row.context) : row.span] = slots[own]
            # Padding repeats a slot that was written: memory never used may hold NaN.
            key_slots[place, row.span :] = slots[row.start]
        self._shape = (len(rows), self.num_queries, self.num_keys)
        self._query_index = torch.from_numpy(query_index.ravel()).to(device)
        self._key_slots = torch.from_numpy(key_slots.ravel()).to(device)
        self._is_query = torch.from_numpy(np.flatnonzero(is_query)).to(device)
        self._outputs = torch.from_numpy(query_index[is_query]).to(device)
        # Without a context query j sees keys 0 to j: plain causal attention needs no mask.
        self._context: Int[Tensor, "B"] | None = None
        if any(len(row.context) for row in rows):
            self._context = torch.tensor([len(row.context) for row in rows], device=device)
        self._mask: Float[Tensor, "B 1 N L"] | None = None

    def attend(
        self,
        pool: KeyValuePool,
        layer: int,
        query: Float[Tensor, "T H D"],
        scale: float,
        output: Float[Tensor, "T H D"],
    ) -> None:
        """Fill this bucket's tokens in `output`."""
        count, num_queries, num_keys = self._shape
        keys, values = pool.read(layer, self._key_slots)
        queries = query.flatten(1).index_select(0, self._query_index)
        found = F.scaled_dot_product_attention(
            queries.view(count, num_queries, *query.shape[1:]).transpose(1, 2),
            keys.view(count, num_keys, *keys.shape[1:]).transpose(1, 2),
            values.view(count, num_keys, *values.shape[1:]).transpose(1, 2),
            attn_mask=self._additive_mask(query.dtype),
            is_causal=self._context is None,
            scale=scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        flat = found.transpose(1, 2).reshape(count * num_queries, -1)
        output.flatten(1).index_copy_(0, self._outputs, flat.index_select(0, self._is_query))

    def _additive_mask(self, dtype: torch.dtype) -> Float[Tensor, "B 1 N L"] | None:
        """0 where a query sees a key, -inf where not; made once, for all layers.

        Float, not bool: on a CPU torch would turn a bool mask into this one in every layer.
        """
        if self._context is None:
            return None
        if self._mask is None:
            _, num_queries, num_keys = self._shape
            device = self._context.device
            seen = self._context[:, None] + torch.arange(num_queries, device=device)
            is_hidden = torch.arange(num_keys, device=device) > seen[:, :, None]
            mask = torch.zeros(is_hidden.shape, dtype=dtype, device=device)
            self._mask = mask.masked_fill_(is_hidden, -torch.inf)[:, None]
        return self._mask


class _OneCall:
    """All rows in one variable-length call: no padding at all. CUDA, half precision."""

    def __init__(
        self, rows: Sequence[Row], slots: npt.NDArray[np.int64], device: torch.device
    ) -> None:
        key_slots = [s for r in rows for s in (r.context, slots[r.start : r.start + r.length])]
        self._key_slots = torch.from_numpy(np.concatenate(key_slots)).to(device)
        lengths, spans = [row.length for row in rows], [row.span for row in rows]
        self._cu_queries = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
        self._cu_keys = torch.tensor([0, *accumulate(spans)], dtype=torch.int32).to(device)
        self._longest = (max(lengths), max(spans))

    def attend(
        self, pool: KeyValuePool, layer: int, query: Float[Tensor, "T H D"], scale: float
    ) -> Float[Tensor, "T H D"]:
        """Attention output of every token, the rows lying in order."""
        keys, values = pool.read(layer, self._key_slots)
        found = varlen_attn(
            query,
            keys,
            values,
            self._cu_queries,
            self._cu_keys,
            *self._longest,
            scale=scale,
            # Causal from the end: a row's last query sees all of its keys.
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != keys.shape[1],
            # One split: a row's sums are taken in the same order whatever else is in the batch.
            num_splits=1,
        )
        assert isinstance(found, Tensor)
        return found


def _cut(row: Row, slots: npt.NDArray[np.int64]) -> Iterator[Row]:
    """A row without a context in pieces, each of which sees no key behind its own end.

    CPU kernels gain little from being causal below some hundred keys; pieces save the other half.
    A row with a context is cut only where its mask would be too large.
    """
    step = PIECE_LENGTH if len(row.context) == 0 else max(1, MASK_ENTRIES // row.span)
    for start in range(0, row.length, step):
        own = slots[row.start : row.start + start]
        yield Row(
            start=row.start + start,
            length=min(step, row.length - start),
            context=np.concatenate([row.context, own]) if start else row.context,
        )


def _bucket(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows sorted by shape and cut where padding would cost more than another call."""
    bucket: list[Row] = []
    useful = num_queries = num_keys = 0
    for row in sorted(rows, key=lambda row: (len(row.context) > 0, row.span, row.length)):
        num_queries, num_keys = max(num_queries, row.length), max(num_keys, row.span)
        useful += row.length * row.span
        padded = (len(bucket) + 1) * num_queries * num_keys
        is_other_kind = bucket and (len(bucket[-1].context) > 0) != (len(row.context) > 0)
        is_wasteful = padded > MOST_PADDING * useful + CALL_ENTRIES
        if bucket and (is_other_kind or padded > MASK_ENTRIES or is_wasteful):
            yield bucket
            bucket = []
            num_queries, num_keys, useful = row.length, row.span, row.length * row.span
        bucket.append(row)
    if bucket:
        yield bucket


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
