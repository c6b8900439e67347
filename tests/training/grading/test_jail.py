"""The jail, against programs that mean harm. Everything here is run for real."""

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from prm.errors import InvalidInput
from tests.training.grading.as_nobody import run_as_nobody
from training.grading import jail as jail_module
from training.grading import kernel
from training.grading.jail import Jail, JailLimits, JailUnavailable, missing_walls

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls())),
]
SMALL = JailLimits(wall_s=8.0, cpu_s=1, memory_mb=256, scratch_mb=8, file_mb=4)


def processes_of_jails() -> list[str]:
    """Commands of jails of this process, and of those that nobody waits for any more."""
    commands, parents = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                status = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            commands[int(folder.name)], parents[int(folder.name)] = command, int(status[1])

    def is_of_another_test(pid: int) -> bool:
        """Tests and servers beside this one may have jails of their own."""
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return False
            if any(name in commands.get(pid, "") for name in ("pytest", "execnet", "server serve")):
                return True
        return False

    return [
        command
        for pid, command in commands.items()
        if "training.grading.launcher" in command or command.endswith("-B main.py ")
        if not is_of_another_test(pid)
    ]


async def test_a_program_is_run_with_its_input_and_files() -> None:
    result = await Jail().run(
        "import sys; print(sys.stdin.read(), open('data.txt').read()); sys.exit(3)",
        stdin="in",
        files={"data.txt": "beside"},
    )
    assert (result.ending, result.exit_code, result.stdout) == ("ended", 3, "in beside\n")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("import os; os.listdir('/root')", "Error"),
        ("import os; os.listdir('/proc')", "FileNotFoundError"),
        ("open('/escaped', 'w')", "PermissionError"),
        ("open('/usr/lib/escaped', 'w')", "PermissionError"),
        ("import os; os.symlink('/etc/passwd', 'link'); open('link')", "FileNotFoundError"),
        ("import os; os.symlink('/', 'up'); open('up/etc/passwd')", "FileNotFoundError"),
        ("import os; os.link(os.__file__, 'os.py')", "Error"),
        ("import os; os.chroot('.')", "PermissionError"),
        ("open('../../../../etc/passwd')", "FileNotFoundError"),
        ("import socket; socket.create_connection(('1.1.1.1', 80), 2)", "Error"),
        ("import socket; socket.create_connection(('127.0.0.1', 22), 2)", "Error"),
        ("import socket; s = socket.socket(2, 2); s.sendto(b'x', ('8.8.8.8', 53))", "OSError"),
        ("import socket; socket.create_server(('127.0.0.1', 0))", "Error"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import os; os.kill(1, 9)", "PermissionError"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(5 << 20))", "OSError"),
        ("[open(str(i), 'wb').write(bytes(3 << 20)) for i in range(9)]", "OSError"),
        ("files = [open(str(i), 'w') for i in range(100)]", "OSError"),
        ("import os; os.setuid(0)", "OSError"),
        ("import subprocess; subprocess.run(['/bin/sh', '-c', 'id'])", "FileNotFoundError"),
        ("import torch", "ModuleNotFoundError"),
    ],
)
async def test_what_is_forbidden_fails_in_the_program(program: str, error: str) -> None:
    result = await Jail(SMALL).run(program)
    assert result.exit_code not in (0, None)
    assert error in result.stderr.splitlines()[-1]


async def test_the_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_API_KEYS", "not for programs")
    result = await Jail().run(
        "import os; print(sorted(os.environ)); print(os.getuid(), os.getpid())"
    )
    assert result.stdout == "['HOME', 'LANG', 'PATH', 'TMPDIR']\n1000 2\n"


async def test_a_fork_bomb_is_held_and_leaves_nothing() -> None:
    program = (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    )
    result = await Jail(JailLimits(wall_s=2.0, cpu_s=1)).run(program)
    assert result.ending in ("time", "killed")
    assert processes_of_jails() == []


async def test_a_child_that_leaves_its_session_dies_with_its_program() -> None:
    program = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nprint('gone')"
    started = time.monotonic()
    result = await Jail(SMALL).run(program)
    assert result.stdout == "gone\n"
    assert time.monotonic() - started < 5
    assert processes_of_jails() == []


@pytest.mark.parametrize(
    ("program", "limits"),
    [
        ("while True: pass", JailLimits(wall_s=20.0, cpu_s=1)),
        ("import time; time.sleep(60)", JailLimits(wall_s=1.0)),
        (
            "import signal, time\n"
            "for s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\n"
            "while True: pass",
            JailLimits(wall_s=20.0, cpu_s=1),
        ),
    ],
)
async def test_an_endless_program_is_out_of_time(program: str, limits: JailLimits) -> None:
    started = time.monotonic()
    result = await Jail(limits).run(program)
    assert result.ending == "time"
    assert time.monotonic() - started < 10
    assert processes_of_jails() == []


async def test_huge_output_is_cut_and_ends_the_program() -> None:
    result = await Jail(SMALL).run("while True: print('x' * 10000)")
    assert (result.ending, len(result.stdout)) == ("output", SMALL.output_bytes)
    both = await Jail(SMALL).run("import sys\nwhile True: sys.stderr.write('y' * 10000)")
    assert (both.ending, len(both.stderr)) == ("output", SMALL.output_bytes)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no table of calls")
async def test_calls_into_the_depth_of_the_kernel_are_refused() -> None:
    program = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for number in (425, 447): print(libc.syscall(number, 0, 0), ctypes.get_errno())\n"
        "print(libc.unshare(0x10000000), ctypes.get_errno())\n"
        "print(libc.ptrace(0, 0, 0, 0), ctypes.get_errno())\n"
    )
    assert (await Jail().run(program)).stdout == "-1 1\n" * 4


async def test_a_caller_that_leaves_takes_the_program_along() -> None:
    task = asyncio.create_task(Jail().run("import time; time.sleep(60)"))
    while not any("main.py" in command for command in processes_of_jails()):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while processes_of_jails():
            await asyncio.sleep(0.02)


async def test_programs_run_side_by_side_and_leave_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    jail = Jail(SMALL)
    results = await asyncio.gather(*(jail.run(f"open('x', 'w'); print({n})") for n in range(6)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(6)]
    assert list(tmp_path.iterdir()) == []


async def test_a_program_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidInput, match="raise scratch_mb"):
        await Jail(SMALL).run("#" * (3 << 20))


async def test_without_landlock_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "landlock_abi", lambda: 0)
    with pytest.raises(JailUnavailable, match="no Landlock"):
        await jail_module.Jail().run("print(1)")


AS_NOBODY = {
    "import os; print(os.getuid(), 6 * 7)": "1000 42",
    "open('/etc/passwd')": "FileNotFoundError",
    "open('/escaped', 'w')": "PermissionError",
    "import os; os.setuid(0)": "OSError",
    "import os; os.kill(1, 9)": "PermissionError",
    "import socket; socket.create_connection(('127.0.0.1', 22), 2)": "PermissionError",
    "x = bytearray(1 << 30)": "MemoryError",
    "[open(str(i), 'wb').write(bytes(15 << 20)) for i in range(9)]": "OSError",
    "import os, time\nfor _ in range(20):\n    if os.fork() == 0: time.sleep(9)": "BlockingIOError",
    "import ctypes, os\nos._exit(ctypes.CDLL(None).unshare(0x10000000) + 4)": "",
}


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))),
    reason="needs root, unshare(1) and setpriv(1)",
)
def test_the_walls_stand_for_a_user_without_privileges_too() -> None:
    done = run_as_nobody(*AS_NOBODY)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {result["uid"] for result in results} == {65534}
    for (program, told), result in zip(AS_NOBODY.items(), results, strict=True):
        assert result["ending"] == "ended", program
        assert told in result["stdout"] + result["stderr"], (program, result)
    assert [result["exit_code"] for result in results] == [0] + [1] * 8 + [3]
    assert processes_of_jails() == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_where_user_namespaces_are_off_the_error_says_so_to_root_too() -> None:
    program = "from training.grading.jail import missing_walls; print(missing_walls())"
    off = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "sh", "-c", off, "sh"),
            *(sys.executable, "-c", program),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "switched off (sysctl user.max_user_namespaces=0)" in done.stdout
