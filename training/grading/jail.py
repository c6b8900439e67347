"""Runs one untrusted Python program: no network, no files but a scratch, bounded in everything.

    >>> import asyncio
    >>> asyncio.run(Jail().run("print(6 * 7)")).stdout
    '42\\n'

The walls are the kernel's (`launcher.py`, `kernel.py`): namespaces for users, processes, network,
IPC and mounts, Landlock, rlimits, seccomp. Where the kernel lacks one of them, nothing is run and
the error says which. They hold against models that misbehave, not against an attacker with an
exploit of the kernel; for that, grade in a virtual machine.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prm.errors import InvalidInput, Unavailable
from training.grading import kernel

_MIB = 1 << 20
# Ended: of itself, with whatever exit code. Time: by the wall clock or the limit on CPU time.
Ending = Literal["ended", "time", "output", "killed"]


class JailUnavailable(Unavailable):
    """This machine cannot confine a program; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JailLimits:
    """What one program may use. `processes` counts threads too; memory is for each process."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_mb: int = 512
    processes: int = 8
    file_mb: int = 16
    scratch_mb: int = 64
    output_bytes: int = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class JailResult:
    """How it ended and what it wrote, each stream cut at `output_bytes`.

    `exit_code` is 128 + n for a program that signal n ended, None where it was killed from here.
    """

    ending: Ending
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float


class Jail:
    """A place to run programs, each in walls of its own. Holds nothing between runs."""

    def __init__(self, limits: JailLimits | None = None) -> None:
        self.limits = limits or JailLimits()

    async def run(
        self, program: str, *, stdin: str = "", files: Mapping[str, str] | None = None
    ) -> JailResult:
        """Run a program, with `files` beside it in its working folder.

        Raises JailUnavailable where the walls cannot be put up. However it ends, cancelled too, no
        process of it is left.
        """
        self._check_size(program, stdin, files or {})
        if missing := missing_walls():
            raise JailUnavailable(f"untrusted code is not run here: {'; '.join(missing)}")
        with tempfile.TemporaryDirectory(prefix="rung-jail-", ignore_cleanup_errors=True) as folder:
            return await self._run(folder, {**(files or {}), "main.py": program}, stdin)

    async def _run(self, folder: str, files: Mapping[str, str], stdin: str) -> JailResult:
        status_read, status_write = os.pipe()
        started = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "training.grading.launcher"),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                pass_fds=[status_write],
                env=_launcher_environment(),
                start_new_session=True,
            )
        except BaseException:
            os.close(status_read)
            raise
        finally:
            os.close(status_write)
        try:
            order = self._order(folder, files, stdin, status_write)
            outputs = await self._outputs(process, json.dumps(order).encode())
        finally:
            # Killed or ended: with the launcher goes process 1, and with that its whole namespace.
            await _kill(process)
            with os.fdopen(status_read, "rb") as status:
                told = status.read(4096).decode(errors="replace")
        if told:
            raise JailUnavailable(f"the walls cannot be put up; {told}")
        ending, stdout, stderr = outputs
        code = process.returncode if ending == "ended" else None
        if code == 128 + signal.SIGXCPU or (
            code == 128 + signal.SIGKILL and self._is_late(started)
        ):
            ending = "time"
        elif code == 128 + signal.SIGKILL:
            ending = "killed"
        return JailResult(
            ending=ending,
            exit_code=code,
            stdout=stdout,
            stderr=stderr,
            seconds=time.monotonic() - started,
        )

    async def _outputs(self, process: Process, order: bytes) -> tuple[Ending, str, str]:
        """Give the order, then read both streams until the end, the deadline or the cap."""
        assert process.stdin is not None, "it was started with pipes"
        assert process.stdout is not None, "it was started with pipes"
        assert process.stderr is not None, "it was started with pipes"
        buffers = bytearray(), bytearray()
        readers = [
            asyncio.create_task(self._read(stream, buffer))
            for stream, buffer in zip((process.stdout, process.stderr), buffers, strict=True)
        ]
        ending: Ending = "ended"
        try:
            async with asyncio.timeout(self.limits.wall_s):
                with suppress(ConnectionError):
                    process.stdin.write(order)
                    await process.stdin.drain()
                    process.stdin.close()
                ended = asyncio.create_task(process.wait())
                waited: set[asyncio.Task[bool] | asyncio.Task[int]] = {*readers, ended}
                while waited:
                    _, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if any(reader.done() and reader.result() for reader in readers):
                        ending = "output"
                        break
        except TimeoutError:
            ending = "time"
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        stdout, stderr = (
            bytes(buffer[: self.limits.output_bytes]).decode(errors="replace") for buffer in buffers
        )
        return ending, stdout, stderr

    async def _read(self, stream: asyncio.StreamReader, buffer: bytearray) -> bool:
        """Whether it wrote more than it may."""
        while chunk := await stream.read(1 << 14):
            buffer.extend(chunk)
            if len(buffer) > self.limits.output_bytes:
                return True
        return False

    def _order(
        self, folder: str, files: Mapping[str, str], stdin: str, status_fd: int
    ) -> dict[str, object]:
        limits = self.limits
        python = os.path.realpath(sys.executable)
        return {
            "status_fd": status_fd,
            "root": folder,
            "scratch_bytes": limits.scratch_mb * _MIB,
            "files": dict(files),
            "stdin": stdin,
            "readable": _readable_paths(python),
            # Isolated and without site-packages; its own standard library only.
            "command": [python, "-I", "-S", "-B", "main.py"],
            "limits": {
                "memory_bytes": limits.memory_mb * _MIB,
                "cpu_s": limits.cpu_s,
                "file_bytes": limits.file_mb * _MIB,
                "processes": limits.processes,
                "files": 64,
            },
        }

    def _is_late(self, started: float) -> bool:
        return time.monotonic() - started >= self.limits.cpu_s

    def _check_size(self, program: str, stdin: str, files: Mapping[str, str]) -> None:
        size = sum(len(text) for text in (program, stdin, *files.values()))
        limit = self.limits.scratch_mb * _MIB // 4
        if size > limit:
            raise InvalidInput(
                f"program, files and input have {size} characters, {limit} is the most; "
                "raise scratch_mb",
                param="code",
            )


def missing_walls() -> list[str]:
    """What this machine lacks, each with its remedy; empty where programs can be confined."""
    if sys.platform != "linux":
        return ["it needs Linux"]
    missing = []
    if kernel.landlock_abi() < 1:
        missing.append("the kernel has no Landlock (5.13 or newer, `landlock` in its `lsm=`)")
    if not Path("/proc/self/ns/user").exists():
        missing.append("the kernel has no user namespaces (CONFIG_USER_NS)")
    # A launcher that is root gives that up before it asks for one.
    for name in ("user/max_user_namespaces", "kernel/unprivileged_userns_clone"):
        with suppress(OSError, ValueError):
            if int(Path("/proc/sys", name).read_text()) < 1:
                setting = name.replace("/", ".")
                missing.append(f"user namespaces are switched off (sysctl {setting}=0)")
    return missing


def _readable_paths(python: str) -> list[str]:
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [
        python,
        # First: of a system's own Python, the library's folder lies within one of these, and what
        # is there already is not shown again.
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"),
        str(base / "lib" / version),
        *(str(path) for path in (base / "lib").glob("libpython*")),
    ]


def _launcher_environment() -> dict[str, str]:
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
    return {name: os.environ[name] for name in kept if name in os.environ}


async def _kill(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    for stream in (process.stdout, process.stderr):
        # asyncio tells the end of a process after the end of its pipes, and a full one has none.
        while stream is not None and await stream.read(1 << 16):
            pass
    await process.wait()
