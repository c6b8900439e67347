"""Keys and values of the sequences that are being written, one contiguous slot each."""

import torch
from jaxtyping import Float, Int
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

    def append(
        self,
        layer: int,
        slots: Int[Tensor, "T"],
        positions: Int[Tensor, "T"],
        key: Float[Tensor, "T K D"],
        value: Float[Tensor, "T K D"],
    ) -> tuple[Float[Tensor, "T K C D"], Float[Tensor, "T K C D"]]:
        """Write one token per slot and return views of these slots, whole."""
        keys, values = self._keys[layer], self._values[layer]
        keys[slots, :, positions] = key
        values[slots, :, positions] = value
        return keys[: len(slots)], values[: len(slots)]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy a slot's first tokens over another slot, to close a gap."""
        for kept in (*self._keys, *self._values):
            kept[target, :, :tokens] = kept[source, :, :tokens]
