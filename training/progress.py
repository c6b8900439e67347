"""How far a long run is: bars on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Called with how much is done, and a word on how it goes.
Advance = Callable[[int, str], None]

LOG_EVERY_S = 15.0


@contextmanager
def stage(title: str, total: int) -> Iterator[Advance]:
    """One stage of the run, of `total` units; yields what to call as they get done."""
    started = time.monotonic()
    show = _bar if sys.stdout.isatty() else _lines
    with show(title, total) as advance:
        yield advance
    say(f"{title}: done in {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """One line for whoever watches."""
    print(text, flush=True)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)


@contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    last = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            say(f"{title}: {done}/{total} {note}".rstrip())

    yield advance
