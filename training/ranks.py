"""The processes that train together: one alone, or those of torchrun (`training/distributed.py`).

Every rank holds a step's whole batch, which is ids and a few numbers per token, and so decides
alike what teaches, what it is worth and what it weighs. What costs is shared out: writing and
grading by problem, forwards and backwards by rows. Weights, gradients and moments are sharded.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")


@runtime_checkable
class Ranks(Protocol):
    """`index` of `count`, from 0. Every rank calls the same methods in the same order.

    Files are written by rank 0.
    """

    @property
    def index(self) -> int: ...
    @property
    def count(self) -> int: ...

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of what all ranks have: every `count`-th item."""
        ...

    def gather(self, own: Sequence[T]) -> list[T]:
        """The shares of all ranks, in the order of what was shared out."""
        ...

    def sum(self, values: "Tensor") -> "Tensor":
        """The sum over all ranks, element by element, the same to the last bit on each."""
        ...

    def full(self, tensor: "Tensor") -> "Tensor":
        """All of a tensor of which ranks have shards."""
        ...

    def fill(self, target: "Tensor", source: "Tensor") -> None:
        """Copy a whole tensor into one that may be sharded."""
        ...

    def shard(self, root: "nn.Module", layers: Iterable["nn.Module"]) -> None:
        """Leave each rank its part of every weight; what is in no layer is the root's."""
        ...

    def whole(self, root: "nn.Module") -> AbstractContextManager[None]:
        """Inside, every rank has all weights, and may read them without the others."""
        ...

    def wait(self) -> None:
        """Go on when all are here."""
        ...


class Alone:
    """One process: nothing is shared out. See `Ranks`."""

    index = 0
    count = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """All of it."""
        return items

    def gather(self, own: Sequence[T]) -> list[T]:
        """All of it."""
        return list(own)

    def sum(self, values: "Tensor") -> "Tensor":
        """As it is."""
        return values

    def full(self, tensor: "Tensor") -> "Tensor":
        """As it is."""
        return tensor

    def fill(self, target: "Tensor", source: "Tensor") -> None:
        """A copy."""
        target.copy_(source)

    def shard(self, root: "nn.Module", layers: Iterable["nn.Module"]) -> None:
        """Nothing to do."""

    def whole(self, root: "nn.Module") -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def wait(self) -> None:
        """Nothing to do."""


ALONE = Alone()
