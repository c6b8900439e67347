"""Whether more weights fit in memory beside what is there."""

import math
import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from prm.manifest import ModelVersion
from prm.weights import stored_tensors

# Weights are rearranged as they are loaded, and a first forward and its keys and values come after.
WEIGHTS_MARGIN = 1.5
FORWARD_BYTES = 128 << 20

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
# Files of a control group: its limit, its use, and what of that could be dropped at once.
# https://docs.kernel.org/admin-guide/cgroup-v2.html#memory, …/cgroup-v1/memory.html
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def weights_bytes(versions: Iterable[ModelVersion], device: str, dtype: torch.dtype | None) -> int:
    """What these weights take on the device. `dtype` None: see `prm/engine/loading.py`.

    Raises ModelFolderError for a file that is not readable.
    """
    if dtype is None and torch.device(device).type == "cpu":
        dtype = torch.float32
    total = 0
    for version in versions:
        tensors = stored_tensors(version.folder).values()
        if dtype is None:
            total += sum(path.stat().st_size for path in {tensor.path for tensor in tensors})
        else:
            total += dtype.itemsize * sum(math.prod(tensor.shape) for tensor in tensors)
    return total


def with_margin(weights: int) -> int:
    """What has to be free for weights of so many bytes."""
    return int(WEIGHTS_MARGIN * weights) + FORWARD_BYTES


def free_bytes(device: str) -> int:
    """What this process can still take on the device, whatever limits it."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator keeps for the next one who asks.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    rooms: list[int] = [psutil.virtual_memory().available, *cgroup_rooms()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        rooms.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(rooms))


def cgroup_rooms(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> Iterator[int]:
    """What is left below the limit of each control group that this process is in."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                yield from _rooms(cgroups, path, _V2)
            elif "memory" in controllers.split(","):
                yield from _rooms(cgroups / "memory", path, _V1)


def _rooms(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Of the group and of those around it. In a container the root is the container's own."""
    limit_file, use_file, droppable = names
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        with suppress(OSError, ValueError):  # no such file, or no limit: "max"
            limit, used = (int((group / name).read_text()) for name in (limit_file, use_file))
            yield limit - used + _stat(group).get(droppable, 0)
        if group == root:
            return


def _stat(group: Path) -> Mapping[str, int]:
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return {name: int(value) for name, value in lines}
