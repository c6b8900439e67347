"""Children of a supervisor: asked to end, ended, and dead with their parent."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from server.jobs.lock import running_lock
from server.jobs.processes import Ask, Ended, memory_of, run_child
from server.jobs.store import LOCK
from tests.server.conftest import poll

FOR_EVER = "import time; time.sleep(600)"
DEAF = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); "
    + FOR_EVER
)
WITH_A_CHILD = (
    "import subprocess, sys; "
    f"child = subprocess.Popen([sys.executable, '-c', {DEAF!r}]); print(child.pid, flush=True); "
    "child.wait()"
)


async def _child(
    tmp_path: Path,
    code: str,
    look: Callable[[int], Awaitable[Ask | None]] | None = None,
) -> Ended:
    async def nobody_asks(_: int) -> Ask | None:
        return None

    with running_lock(tmp_path / LOCK) as lock:
        assert lock is not None
        return await run_child(
            [sys.executable, "-c", code],
            environment=dict(os.environ),
            log=tmp_path / "log.txt",
            lock=lock.descriptor,
            started=lock.tell_group,
            look=look or nobody_asks,
        )


def _asks(why: str, grace_s: float, path: Path) -> Callable[[int], Awaitable[Ask | None]]:
    async def look(_: int) -> Ask | None:
        return Ask(why=why, grace_s=grace_s) if path.read_text().strip() else None

    return look


@pytest.mark.parametrize("code", [0, 1, 75])
def test_an_exit_code_is_told_as_it_is(tmp_path: Path, code: int) -> None:
    ended = asyncio.run(_child(tmp_path, f"import sys; print('said'); sys.exit({code})"))
    assert ended == Ended(code=code)
    assert (tmp_path / "log.txt").read_text() == "said\n"


def test_who_does_not_hear_term_is_killed_after_the_grace(tmp_path: Path) -> None:
    look = _asks("pause", 0.2, tmp_path / "log.txt")
    assert asyncio.run(_child(tmp_path, DEAF, look)) == Ended(code=-signal.SIGKILL, why="pause")


def test_what_a_child_has_started_ends_with_it(tmp_path: Path) -> None:
    look = _asks("cancel", 0.0, tmp_path / "log.txt")
    asyncio.run(_child(tmp_path, WITH_A_CHILD, look))
    grandchild = int((tmp_path / "log.txt").read_text().split()[0])
    poll(lambda: not _lives(grandchild), seconds=5, what="the grandchild is gone")


def test_memory_is_that_of_the_child_and_of_what_it_has_started() -> None:
    hog = "x = bytearray(200_000_000); print('on', flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hog!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = memory_of(process.pid)
        process.communicate(b"\n")
    assert 200e6 < held < 400e6
    assert memory_of(process.pid) == 0


def test_a_child_dies_with_its_supervisor_and_the_lock_is_free(tmp_path: Path) -> None:
    supervisor = (
        "import asyncio, pathlib, sys; from tests.server.jobs.test_processes import _child; "
        f"asyncio.run(_child(pathlib.Path({str(tmp_path)!r}), {WITH_A_CHILD!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", supervisor]) as process:
        log = tmp_path / "log.txt"
        poll(lambda: log.exists() and "on" in log.read_text(), seconds=20, what="started")
        with running_lock(tmp_path / LOCK) as lock:
            assert lock is None
        process.kill()
    grandchild = int(log.read_text().split()[0])
    # The child has died with it; what that had started is ended by whoever comes next.
    with running_lock(tmp_path / LOCK) as lock:
        assert lock is not None
    poll(lambda: not _lives(grandchild), seconds=5, what="the orphan is gone")


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with running_lock(tmp_path / LOCK) as first, running_lock(tmp_path / LOCK) as second:
        assert first is not None
        assert second is None
    with running_lock(tmp_path / LOCK) as third:
        assert third is not None


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
