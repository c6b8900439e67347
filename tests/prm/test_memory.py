"""What is left of memory, whoever limits it."""

import math
from pathlib import Path

import psutil
import torch

from prm.engine.memory import cgroup_rooms, free_bytes, weights_bytes
from prm.registry import read_version
from prm.weights import stored_tensors
from tests.factories import PRM

GIB = 1 << 30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_group_around_a_process_counts_and_files_that_can_be_dropped_do_not(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    own.write_text("0::/system/rung\n")
    stat = f"anon 1\ninactive_file {GIB}\n"
    write(
        tmp_path / "system" / "rung",
        memory__max=str(8 * GIB),
        memory__current=str(3 * GIB),
        memory__stat=stat,
    )
    write(tmp_path / "system", memory__max="max", memory__current=str(5 * GIB), memory__stat=stat)
    write(tmp_path, memory__max=str(6 * GIB), memory__current=str(5 * GIB), memory__stat=stat)
    assert list(cgroup_rooms(tmp_path, own)) == [6 * GIB, 2 * GIB]


def test_groups_of_the_first_kind_are_read_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/x\n4:memory:/not/mounted/here\n")
    write(
        tmp_path / "memory",
        memory__limit_in_bytes=str(4 * GIB),
        memory__usage_in_bytes=str(GIB),
        memory__stat="total_inactive_file 7\n",
    )
    assert list(cgroup_rooms(tmp_path, own)) == [3 * GIB + 7]


def test_this_process_has_room_and_no_more_than_the_machine() -> None:
    assert 0 < free_bytes("cpu") <= psutil.virtual_memory().total
    assert all(room >= 0 for room in cgroup_rooms())


def test_weights_take_what_their_precision_takes(tiny_models: Path) -> None:
    version = read_version(tiny_models / PRM / "1")
    count = sum(math.prod(t.shape) for t in stored_tensors(version.folder).values())
    assert weights_bytes([version], "cpu", None) == 4 * count
    assert weights_bytes([version, version], "cpu", torch.bfloat16) == 4 * count
