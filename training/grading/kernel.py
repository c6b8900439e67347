"""The kernel's own walls, through ctypes: namespaces, mounts, Landlock, seccomp.

Sources: unshare(2), mount(2), landlock(7) with <linux/landlock.h>, seccomp(2) with
<linux/seccomp.h> and <linux/filter.h>. Only the standard library: the launcher imports this in
every run.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
ALL_NAMESPACES = (
    CLONE_NEWUSER
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWNET
    | CLONE_NEWIPC
    | CLONE_NEWUTS
    | CLONE_NEWCGROUP
)
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH, _PR_SET_DUMPABLE = 2, 4
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
# The numbers of calls newer than 2019 are the same on every architecture.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

# Rights on files, in the header's order, with the ABI that brought them.
FS_EXECUTE, FS_WRITE_FILE, FS_READ_FILE, FS_READ_DIR = 1, 2, 4, 8
_FS_RIGHTS_OF_ABI = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_FS_FILE_RIGHTS = FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | (1 << 14) | (1 << 15)

# Calls that no graded program needs and that reach deep into the kernel or beyond the limits:
# ptrace, mount, umount2, add_key, request_key, keyctl, unshare, perf_event_open, setns,
# process_vm_readv, process_vm_writev, bpf, memfd_create, userfaultfd.
_REFUSED = {
    "x86_64": (101, 165, 166, 248, 249, 250, 272, 298, 308, 310, 311, 321, 319, 323),
    "aarch64": (117, 40, 39, 217, 218, 219, 97, 241, 268, 270, 271, 280, 279, 282),
}
# io_uring_setup, io_uring_enter, io_uring_register, memfd_secret; and what mounts since 2019:
# open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr.
_REFUSED_EVERYWHERE = (425, 426, 427, 447, 428, 429, 430, 431, 432, 433, 442)
# clone, which may make namespaces as unshare does; a filter cannot see the flags of clone3, so that
# is said not to exist, and the C library takes clone.
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
# socket, socketpair. Of other families some know no network namespace: AF_VSOCK reaches the host of
# a virtual machine from any of them.
_SOCKETS = {"x86_64": (41, 53), "aarch64": (198, 199)}
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """The kernel's Landlock version, 0 where there is none."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def unshare(flags: int) -> None:
    """Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def mount_private_tmpfs(target: str, size_bytes: int) -> None:
    """An empty file system in memory on `target`, seen by this mount namespace only."""
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
    options = f"size={size_bytes},nr_inodes=4096,mode=0755".encode()
    flags = _MS_NOSUID | _MS_NODEV
    _check(_libc.mount(b"tmpfs", target.encode(), b"tmpfs", flags, options), "mount tmpfs")


def show_within(path: str, root: str) -> None:
    """A file or folder at the same place under `root`; nothing where there is none."""
    target = root + path
    if not os.path.exists(path) or os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    flags = _MS_BIND | _MS_REC
    _check(_libc.mount(path.encode(), target.encode(), None, flags, None), f"mount --bind {path}")


def pivot_to(root: str) -> None:
    """Make `root`, which must be a mount, the root; the old one is gone for this namespace."""
    os.chdir(root)
    _check(_libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount the old root")
    os.chdir("/")


def become_inspectable() -> None:
    """A process that changed its user may open its own /proc/self again."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl DUMPABLE")


def die_with_parent(signal_number: int) -> None:
    """The kernel sends this signal when the parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl PDEATHSIG")


def drop_privileges_for_good() -> None:
    """No capability in reach, and no program that gives some."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")


def restrict_files(readable: Sequence[str], devices: Sequence[str], writable: str) -> None:
    """Landlock: `readable` to read and execute, `devices` to use, `writable` for everything.

    Nothing else on any file system, no TCP, no signal and no abstract socket to outside.
    """
    abi = landlock_abi()
    rights = 0
    for since, bits in _FS_RIGHTS_OF_ABI.items():
        if abi >= since:
            rights |= bits
    network = 3 if abi >= 4 else 0
    scoped = 3 if abi >= 6 else 0
    attribute = struct.pack("QQQ", rights, network, scoped)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _check(
        _libc.syscall(_LANDLOCK_CREATE, attribute, ctypes.c_size_t(size), 0), "landlock"
    )
    for path in readable:
        _allow(ruleset, path, (FS_EXECUTE | FS_READ_FILE | FS_READ_DIR) & rights)
    for path in devices:
        _allow(ruleset, path, (FS_READ_FILE | FS_WRITE_FILE) & rights)
    _allow(ruleset, writable, rights)
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def refuse_calls() -> bool:
    """seccomp: the calls of `_REFUSED` fail with EPERM. False on an architecture not in the table.

    Calls of another architecture (32-bit ones) end the process: the table would not hold them.
    """
    machine = platform.machine()
    if machine not in _REFUSED:
        return False
    refused = (*_REFUSED[machine], *_REFUSED_EVERYWHERE)
    load, jump_equal, jump_ge, jump_set, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, fail = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM
    missing, first_argument = 0x00050000 | errno.ENOSYS, 16
    program = [
        (load, 0, 0, 4),
        (jump_equal, 1, 0, _AUDIT_ARCH[machine]),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),
        # x32's numbers on x86-64.
        (jump_ge, 0, 1, 0x40000000),
        (answer, 0, 0, fail),
    ]
    for number in refused:
        program += [(jump_equal, 0, 1, number), (answer, 0, 0, fail)]
    program += [
        (jump_equal, 0, 1, _CLONE3),
        (answer, 0, 0, missing),
        (jump_equal, 0, 4, _CLONE[machine]),
        (load, 0, 0, first_argument),
        (jump_set, 0, 1, ALL_NAMESPACES),
        (answer, 0, 0, fail),
        (answer, 0, 0, allow),
    ]
    for number in _SOCKETS[machine]:
        program += [
            (jump_equal, 0, 6, number),
            (load, 0, 0, first_argument),
            (jump_equal, 3, 0, _AF_UNIX),
            (jump_equal, 2, 0, _AF_INET),
            (jump_equal, 1, 0, _AF_INET6),
            (answer, 0, 0, fail),
            (answer, 0, 0, allow),
        ]
    program.append((answer, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0), "prctl SECCOMP")
    return True


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FS_FILE_RIGHTS
        rule = struct.pack("=Qi", rights, fd)
        _check(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock {path}")
    finally:
        os.close(fd)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
