"""The process that forks the workers, from outside: it is started, watched, told to kill, ended."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from prm.errors import Unavailable
from search.answers.lease import Worker

_START_S = 60.0
_REFORK_S = 10.0
_END_S = 5.0
_MAX_LINE_BYTES = 1 << 20
# Of the server's environment, with its keys in it, a worker needs only what starts Python.
_KEPT_ENVIRONMENT = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "HOME",
    "VIRTUAL_ENV",
)


class Nursery:
    """`worker.py`, running, and the sockets of its workers. Once it has ended, start another."""

    def __init__(self, process: Process, workers: Sequence[Worker]) -> None:
        self.workers = tuple(workers)
        self.born = 0
        self._process = process
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, workers: int, *, memory_mb: int) -> Self:
        """Start the processes and wait until they are warm. Raises Unavailable."""
        ours, theirs = zip(*(socket.socketpair() for _ in range(workers)), strict=True)
        try:
            process = await _spawn(theirs, memory_mb)
        except BaseException:
            for end in ours:
                end.close()
            raise
        finally:
            for end in theirs:
                end.close()
        opened = await _opened(ours, process)
        nursery = cls(process, opened)
        try:
            await nursery._wait_ready()
        except BaseException:
            await nursery.aclose()
            raise
        return nursery

    @property
    def pid(self) -> int:
        """Of the process that forks."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the processes are gone."""
        return self._process.returncode is not None

    async def wait_ended(self) -> None:
        """Wait until the nursery, whose sockets have closed, is known to have ended."""
        await self._process.wait()

    async def replace(self, worker: Worker, generation: int) -> None:
        """Kill that process of a worker, if it still lives, and wait for the next one."""
        assert self._process.stdin is not None, "it was started with a pipe"
        if worker.generation == generation:
            # The nursery ignores it for a process that has died meanwhile.
            worker.is_ready.clear()
            with suppress(OSError, RuntimeError):
                self._process.stdin.write(f"kill {worker.index} {generation}\n".encode())
        try:
            async with asyncio.timeout(_REFORK_S):
                await worker.is_ready.wait()
        except TimeoutError:
            # The nursery itself hangs: the next use starts another.
            if not self.has_ended:
                self._process.kill()
                await self._process.wait()

    async def aclose(self) -> None:
        """End every process."""
        is_cold = not any(worker.generation for worker in self.workers)
        for worker in self.workers:
            worker.writer.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if is_cold and not self.has_ended:
            # It would import all that it needs before it saw that nobody is there.
            self._process.kill()
        try:
            await asyncio.wait_for(self._process.wait(), timeout=_END_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._watcher

    async def _wait_ready(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                for worker in self.workers:
                    await worker.is_ready.wait()
        if self._watcher.done() or not all(worker.is_ready.is_set() for worker in self.workers):
            raise Unavailable("the answer checker does not start; is math-verify installed?")

    async def _watch(self) -> None:
        """Take the nursery's news. When it is gone, so are the workers: wake whoever waits."""
        assert self._process.stdout is not None, "it was started with a pipe"
        while line := await self._process.stdout.readline():
            event, index = line.split()
            worker = self.workers[int(index)]
            if event == b"ready":
                self.born += 1
                worker.is_born()
            else:
                worker.dies()
        await self._process.wait()
        for worker in self.workers:
            worker.dies()
            # To be found out at its next use, which starts the processes anew.
            worker.is_ready.set()


async def _spawn(ends: Sequence[socket.socket], memory_mb: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "search.answers.worker",
        str(memory_mb),
        *(str(end.fileno()) for end in ends),
        stdin=PIPE,
        stdout=PIPE,
        pass_fds=[end.fileno() for end in ends],
        env={k: v for k, v in os.environ.items() if k in _KEPT_ENVIRONMENT},
        start_new_session=True,
    )


async def _opened(ends: Sequence[socket.socket], process: Process) -> list[Worker]:
    opened: list[Worker] = []
    try:
        for index, end in enumerate(ends):
            end.setblocking(False)
            streams = await asyncio.open_connection(sock=end, limit=_MAX_LINE_BYTES)
            opened.append(Worker(index, *streams))
    except BaseException:
        process.kill()
        for worker in opened:
            worker.writer.close()
        for end in ends[len(opened) :]:
            end.close()
        raise
    return opened
