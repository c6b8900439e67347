"""`python -m training.grading.launcher`: puts up the walls, then becomes the untrusted program.

    parent ─▶ launcher: namespaces, a root of its own in memory
                 └─▶ process 1 of the new pid namespace
                        └─▶ limits, Landlock, seccomp, exec

A JSON order comes on stdin. What went wrong before the program began is written to the status
pipe, which is empty and closed when it runs. When the launcher is killed, process 1 gets SIGKILL,
and with it everything in its namespace: there is no fork that survives.
"""

import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

from training.grading import kernel

# Inside the namespace; not 0, so that exec leaves no capability.
_INNER_ID = 1000
# A root launcher becomes one of these, since the kernel counts no processes of root.
_FIRST_OUTER_ID = 1_700_000_000
_SCRATCH = "/scratch"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def main() -> None:
    """Obey the order; exits as the program does, 128 + signal when that is how it ended."""
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    status = int(order["status_fd"])
    os.set_inheritable(status, False)
    try:
        _move_in(order)
        child = os.fork()
        if child == 0:
            kernel.die_with_parent(signal.SIGKILL)
            # Process 1 ignores signals, its CPU limit's too, so it is not the program.
            program = os.fork()
            if program == 0:
                _become(order)
            _exit_as(program, status)
    except BaseException as error:
        os.write(status, str(error).encode()[:4000])
        os._exit(1)
    _exit_as(child, status)


def _exit_as(child: int, status: int) -> NoReturn:
    """Wait for it with nothing open, and exit with its code."""
    os.close(status)
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        # Process 1 is also handed whatever lost its parent.
        pid, wait_status = os.wait()
        if pid == child:
            break
    code = os.waitstatus_to_exitcode(wait_status)
    os._exit(code if code >= 0 else 128 - code)


def _move_in(order: dict[str, Any]) -> None:
    """Namespaces, and a root of its own that shows nothing but Python."""
    is_root = os.geteuid() == 0
    # Its own for each run: the kernel counts processes by user, and none of root's.
    user = _FIRST_OUTER_ID + os.getpid() if is_root else os.getuid()
    group = user if is_root else os.getgid()
    own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    if is_root:
        # The new user may not be able to walk to Python, so it is shown while root can.
        kernel.unshare(kernel.CLONE_NEWNS)
        _build_root(order, user)
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        kernel.become_inspectable()
        kernel.unshare(kernel.ALL_NAMESPACES & ~kernel.CLONE_NEWNS)
    else:
        kernel.unshare(kernel.ALL_NAMESPACES)
    _write("setgroups", "deny", own)
    _write("uid_map", f"{_INNER_ID} {user} 1", own)
    _write("gid_map", f"{_INNER_ID} {group} 1", own)
    os.close(own)
    if not is_root:
        _build_root(order, None)


def _build_root(order: dict[str, Any], owner: int | None) -> None:
    root: str = order["root"]
    kernel.mount_private_tmpfs(root, order["scratch_bytes"])
    for path in (*order["readable"], *_DEVICES):
        kernel.show_within(path, root)
    os.mkdir(root + _SCRATCH, 0o700)
    if owner is not None:
        os.chown(root + _SCRATCH, owner, owner)
    kernel.pivot_to(root)


def _become(order: dict[str, Any]) -> None:
    """In the program's process: everything that must hold, then exec. Does not return."""
    os.chdir(_SCRATCH)
    for name, text in order["files"].items():
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    with open(".stdin", "w+", encoding="utf-8") as file:
        file.write(order["stdin"])
        file.flush()
        os.unlink(file.name)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        os.dup2(file.fileno(), 0)
    _limit(order["limits"])
    kernel.drop_privileges_for_good()
    kernel.restrict_files(order["readable"], _DEVICES, _SCRATCH)
    kernel.refuse_calls()
    status = int(order["status_fd"])
    os.closerange(3, status)
    os.closerange(status + 1, 1024)
    environment = {"PATH": "/usr/bin:/bin", "HOME": _SCRATCH, "TMPDIR": _SCRATCH, "LANG": "C.UTF-8"}
    os.execve(order["command"][0], order["command"], environment)


def _limit(limits: dict[str, int]) -> None:
    names = {
        "memory_bytes": resource.RLIMIT_AS,
        "cpu_s": resource.RLIMIT_CPU,
        "file_bytes": resource.RLIMIT_FSIZE,
        "processes": resource.RLIMIT_NPROC,
        "files": resource.RLIMIT_NOFILE,
    }
    for name, kind in names.items():
        resource.setrlimit(kind, (limits[name], limits[name]))
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(kind, (0, 0))


def _write(name: str, text: str, folder: int) -> None:
    fd = os.open(name, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(f"{name}: {error}") from error
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
