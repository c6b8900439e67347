"""Ranks that torchrun has started: FSDP2 shards the models, gloo or NCCL carries what they share.

Sharded like this (torch.distributed.fsdp.fully_shard, after Rajbhandari et al., arXiv 1910.02054
§5.3), each rank holds 1/N of the weights, gradients and moments. A layer's weights are gathered
when it is run, and freed behind it. Gradients are summed, not averaged: a loss has the weights of
the whole batch in it (`training/weighting.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from prm.errors import Unavailable
from training.launch import Place

T = TypeVar("T")
# Ranks write at their own pace: the first to finish waits for the last. One that has died is told
# of at once, by torchrun or by its closed connection; this is for one that hangs.
PATIENCE = timedelta(minutes=30)


class Torchrun:
    """See `training.ranks.Ranks`."""

    def __init__(self, device: str) -> None:
        self.index = dist.get_rank()
        self.count = dist.get_world_size()
        self._mesh = init_device_mesh(torch.device(device).type, (self.count,))
        # Python objects and barriers, whatever carries the tensors.
        self._words = dist.new_group(backend="gloo", timeout=PATIENCE)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """See `Ranks.share`."""
        return items[self.index :: self.count]

    def gather(self, own: Sequence[T]) -> list[T]:
        """See `Ranks.gather`."""
        shares: list[list[T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(shares, list(own), group=self._words)
        longest = max(map(len, shares))
        return [share[n] for n in range(longest) for share in shares if n < len(share)]

    def sum(self, values: Tensor) -> Tensor:
        """See `Ranks.sum`."""
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def full(self, tensor: Tensor) -> Tensor:
        """See `Ranks.full`."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def fill(self, target: Tensor, source: Tensor) -> None:
        """See `Ranks.fill`; every rank has the whole source."""
        if isinstance(target, DTensor):
            source = source.to(target.device)
            source = distribute_tensor(
                source, target.device_mesh, target.placements, src_data_rank=None
            )
        target.copy_(source)

    def shard(self, root: nn.Module, layers: Iterable[nn.Module]) -> None:
        """See `Ranks.shard`."""
        for module in (*layers, root):
            # Of the root, too: the embeddings of a model that is done are not kept in memory.
            fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
        for unit in _sharded(root):
            unit.set_gradient_divide_factor(1.0)
            # A factor by itself asks for an operation that gloo has not.
            unit.set_force_sum_reduction_for_comms(True)

    @contextmanager
    def whole(self, root: nn.Module) -> Iterator[None]:
        """See `Ranks.whole`. The root has run before: its first run is what makes it the root."""
        top = cast(FSDPModule, root)
        top.set_reshard_after_forward(False)
        try:
            for module in _sharded(root):
                module.unshard()
            yield
        finally:
            top.set_reshard_after_forward(True)
            # Frees the weights, and forgets the order of forwards that no backward followed.
            top.reset_iter_state()

    def wait(self) -> None:
        """See `Ranks.wait`."""
        dist.barrier(group=self._words)


@contextmanager
def torchrun(place: Place, device: str) -> Iterator[Torchrun]:
    """Join the other ranks, on the device of this one's number where there are several.

    Raises Unavailable where the ranks of this machine are more than its devices.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        found = torch.cuda.device_count()
        if place.local >= found:
            raise Unavailable(
                f"rank {place.index} is the number {place.local} of its machine, which has {found} "
                "CUDA devices; start as many ranks a machine as it has"
            )
        torch.cuda.set_device(place.local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    yield Torchrun(device)
    # Not where an error ends this rank: the others may be waiting in the middle of something.
    dist.destroy_process_group()


def _sharded(root: nn.Module) -> list[FSDPModule]:
    return [module for module in root.modules() if isinstance(module, FSDPModule)]
