"""Keys and values: a pool that scoring addresses by token, and one slot per running sequence."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SlotCache:
    """A fixed number of slots, dense from 0: slot i holds the i-th running sequence.

    Room for longer sequences is made by doubling, up to the model's context.

    Legend: S slots, K key-value heads, C capacity in tokens, D head size, T new tokens.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.slots = slots
        self.capacity = 0
        shape = (slots, kv_heads, 0, head_size)
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]

    def reserve(self, tokens: int) -> None:
        """Make every slot at least this long."""
        if tokens <= self.capacity:
            return
        self.capacity = max(tokens, 2 * self.capacity, 128)
        for kept in (self._keys, self._values):
            for layer, old in enumerate(kept):
                kept[layer] = old.new_zeros((*old.shape[:2], self.capacity, old.shape[3]))
                kept[layer][:, :, : old.shape[2]] = old

    def fill(
        self,
        layer: int,
        slots: tuple[int, int],
        keys: Float[Tensor, "n K L D"],
        values: Float[Tensor, "n K L D"],
    ) -> None:
        """Overwrite the start of a range of slots."""
        first, last = slots
        self._keys[layer][first:last, :, : keys.shape[2]] = keys
        self._values[layer][first:last, :, : values.shape[2]] = values

    def places(self, positions: Int[Tensor, "T"]) -> Int[Tensor, "T K"]:
        """Where `append` writes a token at this position of each of the first slots, all heads."""
        _, heads, capacity, _ = self._keys[0].shape
        device = positions.device
        slots = torch.arange(len(positions), device=device)[:, None]
        return (slots * heads + torch.arange(heads, device=device)) * capacity + positions[:, None]

    def append(
        self,
        layer: int,
        places: Int[Tensor, "T K"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
    ) -> tuple[Float[Tensor, "T K C D"], Float[Tensor, "T K C D"]]:
        """Write a token into each of the first slots and return views of these slots, whole."""
        keys, values = self._keys[layer], self._values[layer]
        flat, size = places.flatten(), keys.shape[-1]
        # On a CPU a fifth of what writing to two indices at once takes.
        keys.view(-1, size).index_copy_(0, flat, key.reshape(-1, size))
        values.view(-1, size).index_copy_(0, flat, value.reshape(-1, size))
        return keys[: len(places)], values[: len(places)]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy a slot's first tokens over another slot, to close a gap."""
        for kept in (*self._keys, *self._values):
            kept[target, :, :tokens] = kept[source, :, :tokens]


class KeyValuePool:
    """Keys and values of single tokens, by slot. Which slot is whose is the prefix tree's business.

    Never larger than `max_slots`; None is as large as is asked for.

    Legend: S slots, K key-value heads, D head size, T new tokens, n slots read.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.device = device
        self.max_slots: int | None = None
        self._shape = (kv_heads, head_size)
        empty = torch.empty((0, kv_heads * head_size), dtype=dtype, device=device)
        self._keys: list[Float[Tensor, "S KD"]] = [empty] * layers
        self._values: list[Float[Tensor, "S KD"]] = [empty] * layers

    @property
    def bytes_per_token(self) -> int:
        """Memory of one slot, over all layers."""
        kv_heads, head_size = self._shape
        return 2 * len(self._keys) * kv_heads * head_size * self._keys[0].element_size()

    @property
    def is_half_precision(self) -> bool:
        """Whether flash attention has a kernel for it."""
        return self._keys[0].dtype in (torch.bfloat16, torch.float16)

    @property
    def num_slots(self) -> int:
        """Slots that there is memory for."""
        return int(self._keys[0].shape[0])

    def reserve(self, slots: int) -> None:
        """Make room for this many slots, doubling where it may: a copy of what is there."""
        if slots <= self.num_slots:
            return
        size = max(2 * self.num_slots, 1024)
        size = max(slots, size if self.max_slots is None else min(size, self.max_slots))
        for kept in (self._keys, self._values):
            for layer, old in enumerate(kept):
                kept[layer] = old.new_empty((size, old.shape[1]))
                kept[layer][: len(old)] = old

    def write(
        self,
        layer: int,
        slots: Int[Tensor, "T"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
    ) -> None:
        """Put each token's keys and values into its slot."""
        self._keys[layer].index_copy_(0, slots, key.flatten(1))
        self._values[layer].index_copy_(0, slots, value.flatten(1))

    def is_finite(self, slots: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Whether these slots hold finite numbers.

        The last layer tells of all: what is no number in the residual stream stays none.
        """
        keys, values = self.read(len(self._keys) - 1, slots)
        # A sum is finite only when its terms are; keys and values are far from overflowing it.
        return (keys.float().sum((1, 2)) + values.float().sum((1, 2))).isfinite()

    def read(
        self, layer: int, slots: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "n K D"], Float[Tensor, "n K D"]]:
        """Copies of these slots' keys and values."""
        # index_select on flat rows is several times faster than advanced indexing on a CPU.
        keys, values = (
            kept[layer].index_select(0, slots).view(-1, *self._shape)
            for kept in (self._keys, self._values)
        )
        return keys, values
