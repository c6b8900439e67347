"""Programs that try to get out of the jail, one wall at a time: each attempt is really made."""

import asyncio
import ctypes
import os
import platform
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.grading.jail import Jail, JailLimits, missing_walls

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(missing_walls()), reason="; ".join(missing_walls())),
]
SMALL = JailLimits(wall_s=8.0, cpu_s=1, memory_mb=256, scratch_mb=8, file_mb=4)
SHORT = JailLimits(wall_s=1.0, cpu_s=1)
_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(autouse=True, scope="module")
def _orphans_are_ours() -> Iterator[None]:
    """What outlives its launcher becomes a child of this process: `_own_processes` sees it."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


async def last_error(program: str) -> str:
    result = await Jail(SMALL).run(program)
    assert result.exit_code != 0, result.stdout
    return result.stderr.strip().splitlines()[-1]


async def test_a_listener_outside_hears_nothing_over_tcp_udp_or_unix_sockets() -> None:
    name = f"\0rung-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(name)
        unix.listen()
        attempts = [
            f"s = socket.create_connection(('127.0.0.1', {tcp.getsockname()[1]}), 1)",
            f"s = socket.socket(2, 2); s.sendto(b'x', ('127.0.0.1', {udp.getsockname()[1]}))",
            f"s = socket.socket(1); s.connect({name!r})",
        ]
        for attempt in attempts:
            assert "Error" in await last_error(f"import socket\n{attempt}")
        for server, hear in ((tcp, tcp.accept), (unix, unix.accept), (udp, lambda: udp.recv(1))):
            server.settimeout(0.1)
            with pytest.raises(TimeoutError):
                hear()


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('::1', 80), 1)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)",
        "socket.getaddrinfo('example.com', 80)",
        "socket.sethostname('x')",
    ],
)
async def test_there_is_no_network_by_any_other_way(attempt: str) -> None:
    error = await last_error(f"import socket\n{attempt}")
    assert error.startswith(("PermissionError", "OSError", "socket.gaierror")), error


async def test_a_file_of_ours_is_neither_read_nor_written_nor_linked(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("ours")
    os.chmod(secret, 0o666)
    os.chmod(tmp_path, 0o777)
    for attempt in (
        f"open({str(secret)!r}).read()",
        f"open({str(secret)!r}, 'w')",
        f"import os; os.link({str(secret)!r}, 'mine'); open('mine').read()",
        f"import os; os.symlink({str(secret)!r}, 'mine'); open('mine').read()",
        f"import os; fd = os.open('/', os.O_PATH); os.open('{secret}'[1:], 0, dir_fd=fd)",
        f"import os; os.rename({str(secret)!r}, 'mine')",
        f"import os; os.unlink({str(secret)!r})",
        f"import os; os.chdir({str(tmp_path)!r})",
    ):
        error = await last_error(attempt)
        assert error.startswith(("FileNotFoundError", "PermissionError")), (attempt, error)
    assert secret.read_text() == "ours"
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


@pytest.mark.parametrize(
    "attempt",
    [
        "open('/dev/shm/x', 'w')",
        "open('/proc/self/environ').read()",
        "import os; os.listdir('/sys')",
        "import os; os.listdir('/')",
        "import os; os.listdir('/tmp')",
        "import os; open(os.__file__, 'a')",
        "import os; os.chmod('/scratch/..', 0o777)",
        "import os, stat; os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
        "from multiprocessing import shared_memory as m; m.SharedMemory(create=True, size=100)",
        "for n in range(10000): open(f'f{n}', 'w').close()",
        "for n in range(9): open(f'f{n}', 'wb').write(bytes(3 << 20))",
    ],
)
async def test_nothing_outside_of_the_scratch_is_there_and_the_scratch_is_small(
    attempt: str,
) -> None:
    error = await last_error(attempt)
    assert error.startswith(("FileNotFoundError", "PermissionError", "OSError")), error


@pytest.mark.parametrize(
    "attempt",
    [
        "x = bytearray(1 << 30)",
        "x = []\nwhile True: x.append(bytes(1 << 20))",
        "import mmap; x = [mmap.mmap(-1, 64 << 20) for _ in range(9)]",
        "x = 10 ** 10 ** 10",
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)",
    ],
)
async def test_memory_ends_at_its_limit(attempt: str) -> None:
    result = await Jail(SMALL).run(attempt)
    assert result.exit_code != 0
    assert result.seconds < 8


async def test_memory_is_bounded_over_children_too() -> None:
    limits = JailLimits(wall_s=8.0, cpu_s=2, memory_mb=128, processes=4)
    program = (
        "import os, time\nborn = 0\n"
        "for _ in range(20):\n"
        "    try:\n        pid = os.fork()\n    except OSError:\n        break\n"
        "    if pid == 0:\n        x = bytearray(64 << 20); time.sleep(0.5); os._exit(0)\n"
        "    born += 1\n"
        "print(born)"
    )
    result = await Jail(limits).run(program)
    assert 0 < int(result.stdout) < 4


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid()\n"
        "    except OSError: pass",
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "import subprocess, sys\n"
        "code = 'import subprocess, sys; exec(sys.argv[1])'\n"
        "while True: subprocess.Popen([sys.executable, '-c', code, code])",
    ],
    ids=["fork", "sessions", "threads", "programs"],
)
async def test_a_bomb_goes_off_inside_and_nothing_is_left(bomb: str) -> None:
    before = _own_processes()
    started = time.monotonic()
    result = await Jail(SHORT).run(bomb)
    assert result.exit_code != 0
    assert time.monotonic() - started < 6
    assert _own_processes() <= before


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import os; os.mkfifo('pipe'); open('pipe').read()",
        "import threading; threading.Event().wait()",
        "import signal\n"
        "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass",
        "import os, time\nif os.fork(): os._exit(0)\ntime.sleep(60)",
    ],
)
async def test_no_program_outstays_its_time(program: str) -> None:
    before = _own_processes()
    started = time.monotonic()
    await Jail(SHORT).run(program)
    assert time.monotonic() - started < 6
    assert _own_processes() <= before


@pytest.mark.parametrize(
    "attempt",
    [
        "import os; os.kill(-1, 9); print('all of them')",
        "import os; os.kill(1, 9); print('process 1')",
        "import os; os.kill(os.getppid(), 15); print('the parent')",
        "import os; os.kill({pid}, 9); print('ours')",
        "import os; os.killpg({group}, 9); print('our group')",
        "import resource; resource.prlimit({pid}, resource.RLIMIT_CPU); print('our limits')",
        "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); print('first')",
        "import time; time.clock_settime(time.CLOCK_REALTIME, 0); print('the clock')",
        "import os; os.setpriority(os.PRIO_PROCESS, 0, -5); print('before others')",
    ],
)
async def test_signals_and_limits_reach_nobody_outside(attempt: str) -> None:
    result = await Jail(SMALL).run(attempt.format(pid=os.getpid(), group=os.getpgid(0)))
    assert result.exit_code == 1
    assert result.stdout == ""


async def test_a_program_ends_itself_and_its_group_alone() -> None:
    results = await asyncio.gather(
        Jail(SMALL).run("import os; os.killpg(0, 9)"),
        Jail(SMALL).run("import time; time.sleep(0.5); print('still here')"),
    )
    assert results[0].ending == "killed"
    assert results[1].stdout == "still here\n"


async def test_an_interpreter_that_breaks_is_an_ending_like_others() -> None:
    broken = await Jail(SMALL).run("import ctypes; ctypes.string_at(0)")
    assert (broken.ending, broken.exit_code) == ("ended", 139)
    deep = await Jail(SMALL).run("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()")
    assert deep.exit_code != 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of calls are x86-64's")
@pytest.mark.parametrize(
    "call",
    [
        "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",
        "libc.syscall(435, (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17), 64)",
    ],
    ids=["clone", "clone3"],
)
async def test_no_further_user_namespace_is_to_be_had(call: str) -> None:
    result = await Jail(SMALL).run(f"{_LIBC}pid = {call}\nif pid == 0: os._exit(0)\nprint(pid)")
    assert result.stdout == "-1\n"


@pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="this Python knows no AF_VSOCK")
async def test_the_host_of_a_virtual_machine_is_out_of_reach() -> None:
    result = await Jail(SMALL).run(
        "import socket\n"
        "try: socket.socket(socket.AF_VSOCK)\n"
        "except OSError as error: print(error.errno in (1, 97))"
    )
    assert result.stdout == "True\n"


async def test_nothing_stays_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    await Jail(SHORT).run("import os; os.mkdir('d'); os.chmod('d', 0); while_ = open('x', 'w')")
    assert list(tmp_path.iterdir()) == []


def _own_processes() -> set[int]:
    """Launchers, and whatever runs a program of theirs, that are children of this process."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            is_jail = b"training.grading.launcher" in command or command.endswith(b"main.py\0")
            if is_jail and parent == os.getpid():
                found.add(int(folder.name))
    return found
