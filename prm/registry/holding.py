"""Folders in the making, and what is left of those whose makers were killed.

A version is made, or taken apart, in a folder beside its name's versions that no reader looks into.
Its maker holds a lock in it for as long as it lives: one whose lock is free is nobody's.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

LOCK = ".registry.lock"
PREFIX = ".publish-"
# Nobody holds the registry's lock while files are copied or removed.
LONGEST_WAIT_S = 60


@contextmanager
def changing_versions(root: Path) -> Iterator[None]:
    """Hold the lock under which versions appear and disappear. Taken before a name's own."""
    with FileLock(root / LOCK, timeout=LONGEST_WAIT_S):
        yield


@contextmanager
def holding_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder on the file system of the name's versions, gone at the end.

    Removes those that killed processes have left there.
    """
    with changing_versions(root):
        (root / name).mkdir(exist_ok=True)
        remove_abandoned(root / name)
        holding = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root / name))
        lock = FileLock(holding / "lock")
        lock.acquire()
    try:
        yield holding
    finally:
        shutil.rmtree(holding, ignore_errors=True)
        lock.release()


def remove_abandoned(folder: Path) -> None:
    """Remove a name's holding folders whose makers live no more."""
    for left in folder.glob(f"{PREFIX}*"):
        # OSError: its maker is at work (filelock's Timeout is one), or it is another user's.
        with suppress(OSError), FileLock(left / "lock", blocking=False):
            shutil.rmtree(left)
