"""The process that reads and compares answers: a nursery that forks one worker per socket.

    parent ── stdin: "kill 0 1" ──▶ nursery ── stdout: "ready 0", "died 0" ──▶ parent
    parent ◀── socket: one request a line, several replies a line ──▶ worker 0

sympy and math-verify are imported once, here; a worker that is killed, or that dies of its limits,
is forked anew in milliseconds. The nursery runs nothing of an answer itself. It goes when its
stdin closes, and its workers go with it, so that nothing outlives the parent, even one killed.
"""

import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_MIB = 1 << 20
# PR_SET_PDEATHSIG of <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1
_WARM_UP = (r"\frac{1}{2}", r"(3,\frac{\pi}{2})", "x^2+2x+1", r"\sqrt{51}", "5,6", r"[1,2)", "x=5")


def main(memory_mb: int, fds: list[int]) -> None:
    """Fork a worker for each socket and keep it so until stdin closes."""
    wake, alarm = os.pipe()
    for fd in (wake, alarm):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _warm_up()
    # What is shared with the workers stays shared: no collection writes into it.
    gc.collect()
    gc.freeze()
    workers: dict[int, int] = {}
    generations = [0] * len(fds)
    for index in range(len(fds)):
        _fork(index, fds, memory_mb, workers)
        generations[index] += 1
    pending = b""
    while True:
        for ready in select.select([0, wake], [], [])[0]:
            if ready == wake:
                with suppress(BlockingIOError):
                    os.read(wake, 4096)
                continue
            received = os.read(0, 4096)
            if not received:
                _end(workers)
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                index, generation = map(int, line.split()[1:])
                # The one that is meant may have died of itself, and this may be the next.
                if generations[index] == generation:
                    _kill(index, workers)
        for index in _reap(workers):
            _tell("died", index)
            _fork(index, fds, memory_mb, workers)
            generations[index] += 1


def _fork(index: int, fds: list[int], memory_mb: int, workers: dict[int, int]) -> None:
    connection = socket.socket(fileno=os.dup(fds[index]))
    with connection:
        # What the last worker did not read is not this one's.
        connection.setblocking(False)
        with suppress(BlockingIOError):
            while connection.recv(1 << 16):
                pass
        connection.setblocking(True)
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _be_limited(memory_mb, nursery)
                for fd in fds:
                    os.close(fd)
                _serve(connection)
                code = 0
            finally:
                os._exit(code)
    workers[pid] = index
    _tell("ready", index)


def _kill(index: int, workers: dict[int, int]) -> None:
    for pid, worker in workers.items():
        if worker == index:
            # It is reaped here and nowhere else, so the number is still its own.
            os.kill(pid, signal.SIGKILL)


def _reap(workers: dict[int, int]) -> Iterator[int]:
    while workers:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        yield workers.pop(pid)


def _end(workers: dict[int, int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for pid in workers:
        os.waitpid(pid, 0)


def _tell(event: str, index: int) -> None:
    os.write(1, f"{event} {index}\n".encode())


def _be_limited(memory_mb: int, nursery: int) -> None:
    """In the child: limits, no output but the socket, and death with the nursery."""
    import ctypes

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != nursery:
            os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_mb * _MIB, used + memory_mb * _MIB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # A recursion that Python counts ends in an error; deeper ones would end the process.
    sys.setrecursionlimit(3000)


def _serve(connection: socket.socket) -> None:
    """Requests, one a line, until the parent's end closes."""
    from search.answers.comparing import compare

    with connection.makefile("rb") as lines:
        for line in lines:
            request: dict[str, Any] = json.loads(line)
            _limit_cpu(request["cpu_s"])

            def reply(message: dict[str, Any], number: int = request["id"]) -> None:
                connection.sendall(json.dumps({"id": number, **message}).encode() + b"\n")

            try:
                compare(request, reply)
            except (MemoryError, RecursionError):
                # Half-built caches are worth nothing; the next request finds a fresh process.
                return


def _limit_cpu(seconds: float) -> None:
    """The parent's deadline is in wall time; this one holds even where the parent is gone."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _warm_up() -> None:
    """The first parse of each kind builds tables: 60 to 140 ms once, not in each worker."""
    from math_verify import verify

    # It warns of what is meant here: that time is kept by someone else.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

    from search.answers.reading import read

    readings = [read(text) for text in _WARM_UP]
    for left in readings:
        for right in readings:
            verify(list(left.expressions), list(right.expressions), timeout_seconds=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(fd) for fd in sys.argv[2:]])
