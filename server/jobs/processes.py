"""A child and all that it starts, as one: what it may use, when it is ended, and with whom it dies.

Run as a program it becomes the command behind it, which ends when the parent does, however that
ends:

python -m server.jobs.processes PARENT_PID COMMAND…
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_LOOK_S = 0.25
# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended: `code` as of subprocess, and `why` it was asked to, if it was."""

    code: int
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ask:
    """That a child should end: TERM, and KILL to the whole group when `grace_s` are over."""

    why: str
    grace_s: float


async def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    lock: int,
    started: Callable[[int], None],
    look: Callable[[int], Awaitable[Ask | None]],
) -> Ended:
    """Run a command as a process group of its own, to its end.

    The group inherits the file descriptor `lock`, and its errors go to `log`. `started` gets its
    id. `look` is asked four times a second, with that id, whether it should end. Whoever cancels
    this kills the group.
    """
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "server.jobs.processes", str(os.getpid()), *command),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=(lock,),
            start_new_session=True,
        )
    ended = asyncio.ensure_future(process.wait())
    asked: Ask | None = None
    try:
        started(process.pid)
        while not ended.done():
            await asyncio.wait({ended}, timeout=_LOOK_S)
            if ended.done() or (asked := await look(process.pid)) is None:
                continue
            # To the first alone: those that work for it are to do so to its end.
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await asyncio.wait({ended}, timeout=asked.grace_s)
            break
    finally:
        # What is left of the group, too: a rank, an engine, a process that grades.
        signal_group(process.pid, signal.SIGKILL)
        await ended
    return Ended(code=ended.result(), why=asked.why if asked else None)


def signal_group(group: int, number: signal.Signals) -> None:
    """To every process of a group; nothing happens where none is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def memory_of(pid: int) -> int:
    """Bytes that a process and all that it started have resident; shared ones count for each."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        for process in [leader, *leader.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_info().rss
    return total


def main() -> None:
    """Become the command of the arguments, tied to the parent's life."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        # It ended before it was asked to tell.
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
