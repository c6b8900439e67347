"""Resident memory of this process: now, and at its peak. Linux only; standard library only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PROC = Path("/proc/self")


@contextmanager
def watch_peak() -> Iterator[Callable[[], int]]:
    """The greatest resident memory of this process from here on, in bytes."""
    reset_peak()
    yield peak_bytes


def reset_peak() -> None:
    """Forget the peak so far."""
    (_PROC / "clear_refs").write_text("5")  # resets VmHWM: proc(5)


def peak_bytes() -> int:
    """The greatest resident memory since `reset_peak`."""
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{field} is in no line of {_PROC / 'status'}")
