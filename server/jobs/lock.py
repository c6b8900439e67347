"""Who runs a job: one supervisor at a time, by a lock that its children inherit.

The kernel gives the lock back when the last of them is gone, so that nobody takes a job whose
trainer still writes. What the file says of its holder is only used to end such an orphan.
"""

import asyncio
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from server.jobs.processes import signal_group

_ENDED_WITHIN_S = 5.0


class RunningLock:
    """The lock, held. `descriptor` is what children inherit."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def tell_group(self, group: int | None) -> None:
        """Which process group works on it now."""
        me = psutil.Process()
        holder = {
            "host": socket.gethostname(),
            "supervisor": me.pid,
            "supervisor_began": me.create_time(),
            "group": group,
            "group_began": _began(group) if group else None,
        }
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(holder).encode(), 0)


@contextmanager
def running_lock(path: Path) -> Iterator[RunningLock | None]:
    """Hold it, or None where another does. Orphans of this machine are ended, and it is taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        is_taken = _is_taken(descriptor)
        # Of a supervisor that was killed, also those live on that have closed its lock.
        if not (_end_orphans(descriptor) or is_taken) or not _is_taken_soon(descriptor):
            yield None
            return
        lock = RunningLock(descriptor)
        lock.tell_group(None)
        yield lock
    finally:
        os.close(descriptor)


@asynccontextmanager
async def running_lock_beside(path: Path) -> AsyncIterator[RunningLock | None]:
    """The same, waiting for orphans to end in a thread."""
    with ExitStack() as stack:
        yield await asyncio.to_thread(stack.enter_context, running_lock(path))


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_taken_soon(descriptor: int) -> bool:
    until = time.monotonic() + _ENDED_WITHIN_S
    while not _is_taken(descriptor):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _end_orphans(descriptor: int) -> bool:
    """Whether the holder's supervisor was of this machine and is dead; its group is killed then."""
    try:
        holder: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return False
    if holder["host"] != socket.gethostname():
        return False
    if _lives(holder["supervisor"], holder["supervisor_began"]):
        return False
    group = holder["group"]
    # Members may live on when the first is gone, or dead and not buried, and keep its number from
    # being given again.
    if group and _began(group) in (None, holder["group_began"]):
        signal_group(group, signal.SIGKILL)
    return True


def _began(pid: int) -> float | None:
    """None of one that has ended already."""
    with suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).create_time())
    return None


def _lives(pid: int, began: float | None) -> bool:
    """Whether it is the same process, and not a later one with its number."""
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
